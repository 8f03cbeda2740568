"""Images in prompts and chats: an image's text is its own in any batch; mistakes are one line."""

import json

import numpy as np
import pytest
from PIL import Image
from random_params import random_params
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.protocol import Special

# As that of llava-hf: it reads contents that are lists alone.
TEMPLATE = """{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in
message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for part
in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor
%}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
STEM = jaxgen.Stem(
    kind="patches", channels=3, size=8, patch=4, first="learned", bias="none", norm="norm"
)
CONFIG = jaxgen.ModelConfig(
    vocab_size=258, context=48, layers=1, d_model=8, heads=2, norm="rms", positions="rope",
    feed="swiglu", biases="none", norm_epsilon=1e-6, init_std=0.5, output="untied",
    vision=jaxgen.Vision(token=257, stem=STEM, layers=1, d_model=8, heads=2, d_ff=8),
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("images")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["</s>", "<image>"])
    words = HuggingFace(engine.to_str().encode(), Special(eos=256))
    about = {"tokenizer": words, "layout": "hf", "chat_template": ChatTemplate(TEMPLATE, {})}
    jaxgen.save(home / "seeing", CONFIG, random_params(CONFIG), **about)
    text = CONFIG.replace(vision=None)
    jaxgen.save(home / "blind", text, random_params(text), **about)
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(home / f"{name}.png")
    (home / "no.png").write_text("no image")
    return home


@pytest.fixture(scope="module")
def session(home):
    return jaxgen.open(home / "seeing")


def test_a_text_is_the_same_alone_and_beside_others(session, home):
    images = [str(home / f"{name}.png") for name in "abc"]
    how = Generation(temperature=0.0, max_new_tokens=8)
    asked = [
        Prompt("<image>Is it </s>?", how, images=images[:1]),
        Prompt("<image>Is it </s>?", how, images=images[1:2]),
        Prompt("x<image> or <image><image>?", how, images=images),
        Prompt("Is it?", how),
    ]
    together = [row[0].text for row in session.run(asked)]
    assert len({*together}) == 4
    for prompt, text in zip(asked[1:], together[1:], strict=True):
        assert session.run([prompt])[0][0].text == text
    bytes_of = np.asarray(Image.open(images[1]))
    assert session.generate("<image>Is it </s>?", how, images=[bytes_of]) == together[1]
    ids = session.ids("x")
    spread = [*ids, *[257] * 4, *ids]
    assert session.generate(spread, how, images=images[:1]) == session.generate(
        "x<image>x", how, images=images[:1]
    )


def test_beams_are_scored_with_the_image(session, home):
    how = Generation(beams=2, n_best=2, max_new_tokens=4, top_logprobs=1)
    found = session.run([Prompt("<image>?", how, images=[home / "a.png"])], detail=True)[0]
    for one in found:
        assert len(one.logprobs) == len(one.tokens)
        assert np.isclose(sum(one.logprobs) / len(one.tokens), one.score, atol=1e-4)


@pytest.fixture
def run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)

    def call(*words):
        code = app.main(["chat", *words, "--temperature", "0", "--max-new-tokens", "8"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_chat_has_images_before_a_message(run, session, home):
    code, _, _ = run("seeing", "What </s> <image>?", "--image", "a.png", "--output", "one.jsonl")
    (row,) = (json.loads(line) for line in (home / "one.jsonl").read_text().splitlines())
    seen = [{"type": "image", "path": str(home / "a.png")}]
    content = [*seen, {"type": "text", "text": "What </s> <image>?"}]
    how = {"temperature": 0.0, "max_new_tokens": 8}
    wanted = session.chat([{"role": "user", "content": content}], **how)
    assert code == 0 and row["result"] == wanted
    chat = [{"role": "user", "content": [*seen, {"type": "text", "text": "x"}]}]
    text = session.generate("USER: <image>x ASSISTANT:", images=[home / "a.png"], **how)
    assert session.chat(chat, **how) == text
    # Text alone is not lost in a template that reads lists.
    plain = session.chat([{"role": "user", "content": "What?"}], **how)
    assert plain == session.generate("USER: What? ASSISTANT:", **how)


def test_mistakes_are_one_line(run, session, home):
    for words, code, line in (
        (("seeing", "x", "--image", "none.png"), 2, "none.png is no file; name an image file"),
        (("seeing", "x", "--image", "no.png"), 7, "no.png holds no whole image"),
        (("seeing", "--image", "a.png"), 2, "--image a.png needs a message"),
        (("blind", "x", "--image", "a.png"), 2, "reads no images in prompts"),
    ):
        got, _, err = run(*words)
        assert got == code and line in err, (words, got, err)
    image = home / "a.png"
    for prompt, images, more, error, line in (
        ("x", [image], {}, ConfigError, "0 places for 1 images; write <image> once for each"),
        ("<image>x", [image] * 2, {}, ConfigError, "1 places for 2 images"),
        ([257, 1], [], {}, ConfigError, "1 places for 0 images"),
        ("x<image>", [image], {}, ConfigError, "ends with an image"),
        ("<image>x", [image], {"overflow": "slide"}, ConfigError, "overflow=slide"),
        ("<image>" + "x" * 60, [image], {"overflow": "cut"}, ConfigError, "would cut it"),
        ("<image>x", [home / "no.png"], {}, DataError, "holds no whole image"),
    ):
        with pytest.raises(error, match=line):
            session.generate(prompt, images=images, **more)
    with pytest.raises(ConfigError, match="'type': 'image', 'path': FILE"):
        session.chat([{"role": "user", "content": [{"type": "image"}]}])


SETTINGS = {
    "patch_size=8, but the model has 4": {"patch_size": 8},
    "num_additional_image_tokens=0, but the model has 1": {"num_additional_image_tokens": 0},
    "vision_feature_select_strategy='full'": {"vision_feature_select_strategy": "full"},
    "image_grid=2 is not known": {"image_grid": 2},
    "PixtralImageProcessor is not known": {
        "image_processor": {"image_processor_type": "PixtralImageProcessor"}
    },
}


@pytest.mark.parametrize("reason", SETTINGS)
def test_settings_of_a_processor_hold_or_are_named(reason, session, home, tmp_path):
    from jaxgen.pretrained.preprocessor import read_image_prompts

    about = json.loads((home / "seeing/processor_config.json").read_text())
    inside = json.loads((home / "seeing/preprocessor_config.json").read_text())
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(about | {"image_processor": inside, "image_token": "<image>"}))
    assert read_image_prompts(tmp_path, CONFIG.vision) == session.model.images
    path.write_text(json.dumps(about | {"image_processor": inside} | SETTINGS[reason]))
    with pytest.raises(CheckpointError, match=reason):
        read_image_prompts(tmp_path, CONFIG.vision)

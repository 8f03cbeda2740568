"""`jaxgen caption`: image files in, a line of text each out; mistakes are one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from random_params import random_params

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError, DataError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.pretrained.hub_read import read_config
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.text.request import Generation
from jaxgen.tokens.plain import Bytes

STEM = jaxgen.Stem(kind="patches", channels=3, size=8, patch=4, first="learned")
CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=24, layers=1, d_model=8, heads=2, feed="gelu_tanh", stem=STEM,
    topology="encoder_decoder", towers=jaxgen.Towers(encoder_norm_at="pre", encoder_feed="gelu",
    encoder_norm_epsilon=1e-12, encoder_biases="no_qkv"), init_std=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("caption")
    how = GenerationConfig(decoder_start_token_id=256, eos_token_id=(258,), max_new_tokens=6)
    kinds = {"gpt2": CONFIG, "trocr": CONFIG.replace(norm_at="post", feed="gelu",
             embed=jaxgen.Embed(offset=2, norm="norm"))}  # fmt: skip
    for name, config in kinds.items():
        about = {"tokenizer": Bytes(), "generation_config": how, "layout": "hf"}
        jaxgen.save(home / name, config, random_params(config), **about)
    text = CONFIG.replace(stem=None, topology="decoder", towers=jaxgen.Towers())
    jaxgen.save(home / "text", text, random_params(text), tokenizer=Bytes())
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(home / f"{name}.png")
    (home / "half.png").write_bytes((home / "a.png").read_bytes()[:60])
    (home / "files.txt").write_text("b.png\na.png\n")
    return home


@pytest.fixture
def run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)

    def call(*words):
        code = app.main(["caption", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_each_image_has_its_line_whatever_is_beside_it(run, home):
    code, out, _ = run("gpt2", "a.png", "b.png")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2 and lines[0] != lines[1]
    assert run("gpt2", "b.png")[1].splitlines() == lines[1:]
    more = ("--output", "texts.jsonl", "--beams", "2", "--top-logprobs", "2")
    code, _, _ = run("trocr", "--input", "files.txt", *more)
    rows = [json.loads(line) for line in (home / "texts.jsonl").read_text().splitlines()]
    assert code == 0 and [row["text"] for row in rows] == ["b.png", "a.png"]
    assert all(row["result"] for row in rows)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["gpt2", "c.png"], 2, "c.png is no file; name an image file"),
        (["gpt2", "half.png"], 7, "half.png holds no whole image"),
        (["text", "a.png"], 2, "text reads no images"),
        (["gpt2", "a.png", "--no-repeat-source", "2"], 2, "an image has no tokens"),
        (["gpt2", "a.png", "--max-new-tokens", "99"], 2, "context=24"),
    ],
)
def test_mistakes_are_one_line(run, words, code, reason):
    got, out, said = run(*words)
    assert (got, out) == (code, "") and reason in said.splitlines()[-1]


def test_a_model_of_images_refuses_texts(home, monkeypatch, capsys):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    assert app.main(["generate", str(home / "gpt2"), "--prompt", "a"]) == 2
    assert "`jaxgen caption` makes them of files" in capsys.readouterr().err


def test_an_image_s_text_is_its_own_in_any_batch_and_a_broken_file_is_told_first(home):
    model, done = open_model(home / "gpt2"), []
    names = [home / "a.png", home / "b.png"]
    how = Generation(beams=2, top_logprobs=2)
    both = tasks.captions(model, names, how, detail=True)
    for name, row in zip(names, both, strict=True):
        (alone,) = tasks.captions(model, [name], how, detail=True)
        assert [one.tokens for one in alone] == [one.tokens for one in row]
        for one, other in zip(alone, row, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    drawn = tasks.caption(model, [names[0]] * 2, Generation(temperature=1.0))
    assert drawn == tasks.caption(model, [names[0]] * 2, Generation(temperature=1.0), batch=1)
    assert drawn[0] != drawn[1]
    with pytest.raises(DataError, match="holds no whole image"):
        broken = [*names, home / "half.png"]
        tasks.captions(model, broken, batch=1, progress=lambda *now: done.append(now))
    assert not done
    longer = replace(model, generation_config=GenerationConfig(eos_token_id=(258,)))
    assert len(tasks.captions(longer, names[:1])[0][0].tokens) > 16


def test_a_projection_between_towers_is_refused(home, tmp_path):
    about = json.loads((home / "gpt2" / "config.json").read_text())
    about["encoder"]["hidden_size"] = 16
    for read, reason in ((None, "enc_to_dec_proj"), (8, "cross_attention_hidden_size=8 but")):
        about["decoder"]["cross_attention_hidden_size"] = read
        (tmp_path / "config.json").write_text(json.dumps(about))
        with pytest.raises(CheckpointError, match=reason):
            read_config(tmp_path)

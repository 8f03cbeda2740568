"""Decoders that read images in their prompts, beside transformers: logits, texts and folders."""

import json

import numpy as np
import pytest

import jaxgen
from jaxgen.errors import CheckpointError
from jaxgen.pretrained import hub_parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZE, PLACES, TOKEN = 32, 16, 260


def llava(**changes):
    """Return LLaVA of transformers with random weights; changes: of its config."""
    torch.manual_seed(1)
    tower = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        image_size=SIZE, patch_size=8, initializer_range=0.3, projection_dim=16,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=264, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=96,
        initializer_range=0.3, bos_token_id=256, pad_token_id=257, eos_token_id=258,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=TOKEN, image_seq_length=PLACES,
        **changes,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval()


CHANGES = [
    {},
    {"vision_feature_layer": -1, "multimodal_projector_bias": False},
    {"vision_feature_layer": 1, "projector_hidden_act": "relu"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_logits_and_folders_are_theirs(changes, tmp_path):
    model = llava(**changes)
    model.save_pretrained(tmp_path / "theirs")
    config, params = jaxgen.load(tmp_path / "theirs")
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, SIZE, SIZE, 3)).astype(np.float32)
    ids = rng.integers(0, 256, (2, 40))
    ids[0, 1 : 1 + PLACES] = ids[1, :PLACES] = ids[1, 20 : 20 + PLACES] = TOKEN
    media = np.stack([pixels[[0, 0]], pixels[1:]])  # one image in the first row
    seen = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = model(torch.tensor(ids), pixel_values=seen, output_hidden_states=True)
    out = jaxgen.apply(params, config, ids, media=media)
    np.testing.assert_allclose(out.logits, wanted.logits, atol=1e-4)
    np.testing.assert_allclose(out.hidden, wanted.hidden_states[-1], atol=1e-4)

    jaxgen.save(tmp_path / "ours", config, params, layout="hf")
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    read = {f"{layer}." for layer in range(config.vision.layers)}
    for name, value in model.state_dict().items():
        layer = name.partition("vision_tower.encoder.layers.")[2][:2]
        if "post_layernorm" not in name and (not layer or layer in read):
            assert torch.equal(value, again.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(again(torch.tensor(ids), pixel_values=seen).logits, wanted.logits)
    hub_parity.compare(tmp_path / "ours", config, params)  # raises beyond 1e-4
    for name, part in jaxgen.load(tmp_path / "ours")[1]["vision"].items():
        for one, other in zip(*map(_leaves, (part, params["vision"][name])), strict=True):
            np.testing.assert_array_equal(one, other)


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_texts_and_pixels_are_theirs_alone_and_together(tmp_path):
    from PIL import Image
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from jaxgen.text.prompts import Prompt
    from jaxgen.text.request import Generation

    model = llava()
    model.save_pretrained(tmp_path)
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    marks = ("<s>", "<pad>", "</s>", "<unk>", "<image>")
    marked = {name: 256 + i for i, name in enumerate(marks)}
    engine = Tokenizer(models.BPE(letters | marked, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    size = {"height": SIZE, "width": SIZE}
    theirs = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=size),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=engine, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
            unk_token="<unk>", additional_special_tokens=["<image>"],
        ),
        patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
        for shape in ((40, 50), (64, 33), (20, 90))
    ]
    session = jaxgen.open(tmp_path)
    cases = [("a <image> b", [0]), ("<image> and <image>?", [1, 2]), ("text", [])]
    for how, more in (({"temperature": 0.0}, {}), ({"beams": 3}, {"num_beams": 3})):
        wanted = []
        for text, which in cases:
            seen = [images[i] for i in which] or None
            read = theirs(images=seen, text=text, return_tensors="pt")
            with torch.no_grad():
                rows = model.generate(**read, max_new_tokens=9, do_sample=False, **more)
            ids = rows[0, read["input_ids"].shape[1] :]
            wanted.append(theirs.tokenizer.decode(ids, skip_special_tokens=True))
        settings = Generation(max_new_tokens=9, **how)
        asked = [
            Prompt(text, settings, images=[np.asarray(images[i]) for i in which])
            for text, which in cases
        ]
        assert [row[0].text for row in session.run(asked)] == wanted


REFUSED = {
    "vision_feature_layer=.-2, -1. of 3": {"vision_feature_layer": [-2, -1]},
    "vision_feature_layer=-4 is none of the 3": {"vision_feature_layer": -4},
    "vision_config.model_type='siglip_vision_model' is not known": {
        "vision_config": {"model_type": "siglip_vision_model"}
    },
    "text_config.model_type='opt' is not known": {"text_config": {"model_type": "opt"}},
    "projector_hidden_act='mish' is not known": {"projector_hidden_act": "mish"},
}


def test_what_is_not_known_is_refused_by_name(tmp_path):
    model = llava()
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for reason, changes in REFUSED.items():
        (tmp_path / "config.json").write_text(json.dumps(about | changes))
        with pytest.raises(CheckpointError, match=reason):
            jaxgen.load(tmp_path)

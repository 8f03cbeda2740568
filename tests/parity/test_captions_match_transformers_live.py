"""Models that read images, and what is made of the images before, beside transformers."""

import numpy as np
import pytest

import jaxgen
from jaxgen.config_media import Stem
from jaxgen.data.media.images import read_image
from jaxgen.pretrained import hub_parity
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.pretrained.preprocessor import read_pixels
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.session import session_of
from jaxgen.tokens.plain import Bytes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
SIZE = 32


def towers(kind, **changes):
    """Return the model of transformers with random weights; changes: of its encoder."""
    torch.manual_seed(1)
    vit = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=SIZE, patch_size=8, initializer_range=0.3, **changes,
    )  # fmt: skip
    if kind == "gpt2":
        decoder = transformers.GPT2Config(
            vocab_size=259, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
        )
    else:
        decoder = transformers.TrOCRConfig(
            vocab_size=259, d_model=48, decoder_layers=2, decoder_attention_heads=4,
            decoder_ffn_dim=64, max_position_embeddings=32, cross_attention_hidden_size=32,
            init_std=0.3, activation_function="relu", scale_embedding=True,
        )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 256, 257, 258
    model = transformers.VisionEncoderDecoderModel(config).eval()
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=256, pad_token_id=257, eos_token_id=258
    )
    return model


KINDS = [("gpt2", {}), ("trocr", {}), ("trocr", {"qkv_bias": False, "hidden_act": "relu"})]


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.filterwarnings("ignore:.*pooler.*left out")
def test_logits_texts_and_folders_are_theirs(kind, changes, tmp_path):
    model = towers(kind, **changes)
    model.save_pretrained(tmp_path / "theirs")
    config, params = jaxgen.load(tmp_path / "theirs")
    pixels = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3), np.float32)
    ids = np.random.default_rng(1).integers(0, 256, (2, 7))
    seen = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = model(pixel_values=seen, decoder_input_ids=torch.tensor(ids))
    memory = jaxgen.encode(params, config, media=pixels)
    np.testing.assert_allclose(memory.state, wanted.encoder_last_hidden_state, atol=1e-4)
    logits = jaxgen.apply(params, config, ids, memory=memory).logits
    np.testing.assert_allclose(logits, wanted.logits, atol=1e-4)

    told = GenerationConfig(eos_token_id=(258,))
    loaded = LoadedModel(config, params, Bytes(), start=256, generation_config=told)
    session = session_of(loaded)
    for how, more in (({"temperature": 0.0}, {}), ({"beams": 3}, {"num_beams": 3})):
        texts = [
            session.complete([one], max_new_tokens=9, **how)[0] for one in pixels
        ]  # each alone
        assert session.complete([*pixels], max_new_tokens=9, **how) == texts
        with torch.no_grad():
            rows = model.generate(pixel_values=seen, max_new_tokens=9, do_sample=False, **more)
        told = [[i for i in row.tolist()[1:] if i < 256] for row in rows]
        assert texts == [session.tokenizer.decode(row) for row in told]

    hub_parity.compare(tmp_path / "theirs", config, params)  # raises beyond 1e-4
    jaxgen.save(tmp_path / "ours", config, params, layout="hf", tokenizer=Bytes())
    again = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "ours")
    for name, value in model.state_dict().items():
        assert "pooler" in name or torch.equal(value, again.state_dict()[name]), name


PROCESSORS = {
    "ViT": {"size": {"height": 32, "width": 32}},
    "DeiT": {"size": {"height": 36, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    "CLIP": {"size": {"shortest_edge": 30}, "crop_size": {"height": 32, "width": 32}},
}
CHANGES = [{}, {"resample": 3}, {"do_normalize": False}, {"do_rescale": False}]


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("changes", CHANGES)
def test_pixels_are_those_of_the_image_processors(kind, changes, tmp_path):
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**PROCESSORS[kind], **changes)
    theirs.save_pretrained(tmp_path)
    front = read_pixels(tmp_path, Stem(kind="patches", channels=3, size=SIZE, patch=8))
    rng = np.random.default_rng(0)
    for shape in ((32, 32, 3), (50, 71, 3), (97, 40, 3), (7, 9, 3)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        wanted = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(front(pixels), wanted.transpose(1, 2, 0), atol=1e-6)


def test_files_are_read_as_theirs(tmp_path):
    rng = np.random.default_rng(0)
    for mode, name in (("RGB", "a.png"), ("L", "b.jpg"), ("CMYK", "c.jpg"), ("RGBA", "d.png")):
        bands = {"L": 1, "RGB": 3}.get(mode, 4)
        shape = (9, 12) if bands == 1 else (9, 12, bands)
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)
        exif = Image.Exif()
        exif[0x0112] = 6  # which is lying on its side
        image.save(tmp_path / name, exif=exif)
        wanted = transformers.image_utils.load_image(str(tmp_path / name))
        np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(wanted))

"""Stems are the convolutions of the papers, and what does not fit one is one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.nn.stem import Stem

SIZES = {"context": 8, "layers": 1, "d_model": 8, "heads": 2}
SOUND = jaxgen.Stem(kind="log_mel", channels=5, size=6)
IMAGE = jaxgen.Stem(kind="patches", channels=3, size=6, patch=2, first="learned")
TWO = jaxgen.ModelConfig(**SIZES, vocab_size=11, topology="encoder_decoder", stem=SOUND)
ONE = jaxgen.ModelConfig(**SIZES, topology="encoder", stem=IMAGE, positions="none", head="none")
CONV = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


def conv(x, kernel, stride, pad):
    form = CONV[x.ndim - 2]
    steps, pads = (stride,) * (x.ndim - 2), [(pad, pad)] * (x.ndim - 2)
    return jax.lax.conv_general_dilated(x, kernel, steps, pads, dimension_numbers=form)


def drawn(config, media):
    params = jax.tree.map(lambda x: x + 0.1, jaxgen.init(config, jax.random.key(0)))
    part = params.get("encoder", params)["stem"]
    reader = config.encoder() if config.topology == "encoder_decoder" else config
    return part, Stem(reader, config.stem).apply({"params": part}, jnp.asarray(media))


def test_sound_goes_through_two_convolutions():
    frames = np.random.default_rng(0).standard_normal((2, 12, 5)).astype(np.float32)
    p, out = drawn(TWO, frames)
    x = jax.nn.gelu(conv(frames, p["conv1"], 1, 1) + p["conv1_bias"], approximate=False)
    x = jax.nn.gelu(conv(x, p["conv2"], 2, 1) + p["conv2_bias"], approximate=False)
    np.testing.assert_allclose(out, x + p["positions"], atol=1e-5)


def test_an_image_becomes_patches_behind_the_first():
    image = np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32)
    p, out = drawn(ONE, image)
    x = conv(image, p["patches"], 2, 0).reshape(2, 9, 8) + p["patches_bias"]
    x = jnp.concatenate([jnp.broadcast_to(p["first"], (2, 1, 8)), x], axis=1)
    np.testing.assert_allclose(out, x + p["positions"], atol=1e-5)


def test_positions_of_sound_are_waves_that_are_not_trained():
    params = jaxgen.init(TWO, jax.random.key(0))
    frames = jnp.ones((1, 12, 5))

    def loss(params):
        return jnp.sum(jaxgen.encode(params, TWO, media=frames).state ** 2)

    slopes = jax.grad(loss)(params)["encoder"]["stem"]
    assert not np.any(slopes["positions"]) and np.any(slopes["conv1"])
    first = params["encoder"]["stem"]["positions"][0]
    assert first.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_memory_of_sound_is_read_by_the_decoder():
    params = jaxgen.init(TWO, jax.random.key(0))
    memory = jaxgen.encode(params, TWO, media=np.ones((2, 12, 5), np.float32))
    assert memory.state.shape == (2, 6, 8) and memory.segments.shape == (2, 6)
    assert jaxgen.apply(params, TWO, [[1, 2], [3, 4]], memory=memory).logits.shape == (2, 2, 11)


FRAMES = np.ones((1, 12, 5), np.float32)
CALLS = {
    "reads no tokens": {"tokens": [[1, 2]]},
    r"media is \[1, 11, 5\]": {"media": FRAMES[:, 1:]},
    "segments= has no effect": {"media": FRAMES, "segments": np.ones((1, 6), int)},
}


@pytest.mark.parametrize("reason", CALLS)
def test_what_a_stem_does_not_read_is_one_line(reason):
    params = jaxgen.init(TWO, jax.random.key(0))
    with pytest.raises(ConfigError, match=reason):
        jaxgen.encode(params, TWO, **CALLS[reason])
    with pytest.raises(ConfigError, match="media= was given"):
        jaxgen.apply(params, TWO, media=FRAMES)


CONFIGS = {
    "topology=decoder": {"topology": "decoder"},
    "towers.tokens=own": {"topology": "encoder_decoder", "towers": jaxgen.Towers(tokens="own")},
    "positions=learned": {"topology": "encoder", "head": "none"},
    "head=mlm": {"topology": "encoder", "positions": "none", "head": "mlm"},
    "embed=": {"topology": "encoder", "positions": "none", "head": "none"}
    | {"embed": jaxgen.Embed(types=2)},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_has_no_place_for_a_stem_says_so(name):
    with pytest.raises(ConfigError, match=name):
        jaxgen.ModelConfig(**SIZES, vocab_size=11, stem=SOUND, **CONFIGS[name])


STEMS = {
    "stem.channels=0": {"channels": 0},
    "stem.patch=None": {"kind": "patches", "size": 6},
    "stem.patch=4": {"kind": "patches", "size": 6, "patch": 4},
    "stem.first=learned has no effect": {"first": "learned"},
}


@pytest.mark.parametrize("name", STEMS)
def test_a_size_that_does_not_fit_is_named(name):
    with pytest.raises(ConfigError, match=name):
        jaxgen.Stem(**STEMS[name])

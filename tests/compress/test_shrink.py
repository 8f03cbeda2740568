"""A model without its idle heads, channels and layers is the same, and those are what goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.compress import shrink
from jaxgen.compress.recipe import Recipe
from jaxgen.errors import ConfigError

CONFIG = jaxgen.ModelConfig(
    vocab_size=64, context=16, layers=3, d_model=32, heads=8, kv_heads=4, d_ff=24, feed="swiglu",
    norm="rms", positions="rope", biases="all",
)  # fmt: skip
ROWS = np.random.default_rng(0).integers(0, 64, (3, 16)).astype(np.int32)


@pytest.fixture(scope="module")
def idle():
    """Return parameters of which layer 1, every other group of heads and 8 channels do nothing."""
    params = jaxgen.init(CONFIG, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    attn, feed = dict(params["layers"]["attn"]), dict(params["layers"]["feed"])
    attn["o"] = jax.random.normal(keys[0], attn["o"].shape) / 8
    feed["down"] = jax.random.normal(keys[1], feed["down"].shape) / 8
    for layer, first in enumerate((0, 0, 1)):
        for group in range(first, 4, 2):
            attn["o"] = attn["o"].at[layer, 2 * group : 2 * group + 2].set(0)
        feed["down"] = feed["down"].at[layer, layer * 3 : layer * 3 + 8].set(0)
    attn["o"], feed["down"] = attn["o"].at[1].set(0), feed["down"].at[1].set(0)
    layers = {**params["layers"], "attn": attn, "feed": feed}
    return {**params, "layers": layers}


def test_what_goes_is_what_did_nothing(idle):
    recipe = Recipe(heads=4, channels=16, layers=2)
    shrink.check(CONFIG, recipe)
    measured = shrink.importance(idle, CONFIG, ROWS)
    assert np.all(np.sum(measured.groups[[0, 2]] > 1e-6, axis=1) == 2)
    assert np.all(np.sum(measured.channels[[0, 2]] > 1e-6, axis=1) == 16)
    assert np.argmin(measured.layers) == 1 and measured.layers[1] < 1e-6
    config, params = shrink.shrink(idle, CONFIG, recipe, measured)
    assert (config.layers, config.heads, config.K, config.F, config.H) == (2, 4, 2, 16, CONFIG.H)
    shapes = {p: x.shape for p, x in jaxgen.tree.flatten(params).items()}
    assert shapes == {p: x.shape for p, x in jaxgen.tree.flatten(jaxgen.abstract(config)).items()}
    before = jaxgen.apply(idle, CONFIG, jnp.asarray(ROWS)).logits
    after = jaxgen.apply(params, config, jnp.asarray(ROWS)).logits
    np.testing.assert_allclose(after, before, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "recipe", "said"),
    [({}, {"heads": 3}, "heads=3 must be a multiple of 2"),
     ({}, {"channels": 25}, "channels=25 must be from 1 to the 24"),
     ({}, {"layers": 0}, "layers=0 must be from 1 to the 3"),
     ({"positions": "alibi"}, {"heads": 4}, "positions=alibi")],
)  # fmt: skip
def test_sizes_that_a_model_does_not_have_are_refused(changes, recipe, said):
    with pytest.raises(ConfigError, match=said):
        shrink.check(CONFIG.replace(**changes), Recipe(**recipe))

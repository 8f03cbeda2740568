"""Queries that grow with their position: in which layers, and counted from where."""

import jax
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError

GROWTH = jaxgen.Scores(growth=0.5, growth_span=3, growth_first=1, growth_in="unturned")
CONFIG = jaxgen.ModelConfig(
    vocab_size=31, context=32, layers=1, d_model=16, heads=4, norm="rms", positions="rope",
    biases="none", feed="swiglu", qk_norm="unit", init_std=0.5, scores=GROWTH, pattern=("far",),
    kinds={"far": jaxgen.LayerKind(positions="none")},
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 9))
apply = jax.jit(jaxgen.apply, static_argnums=1)


def test_layers_without_rotation_grow_and_have_no_unit_norm():
    params = random_params(CONFIG)
    places = np.arange(9)[None].repeat(2, 0)
    found = apply(params, CONFIG, TOKENS).logits
    # Where nothing turns, the positions are in the growth alone.
    from_zero = CONFIG.replace(scores=jaxgen.Scores(growth=0.5, growth_span=3), qk_norm="none")
    later = apply(params, from_zero, TOKENS, positions=places + 1).logits
    np.testing.assert_allclose(found, later, atol=1e-6)
    assert np.abs(found - apply(params, from_zero, TOKENS).logits).max() > 1e-3
    # Layers that turn do not grow.
    turning = {"pattern": ("far", "global"), "layers": 2}
    both, plain = CONFIG.replace(**turning), CONFIG.replace(scores=jaxgen.Scores(), **turning)
    params = random_params(both)
    params["layers"]["0"] = jax.tree.map(np.zeros_like, params["layers"]["0"])
    ours, other = (apply(params, config, TOKENS).logits for config in (both, plain))
    np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"growth_first": 1}, "growth_first=1 has no effect: scores.growth=None"),
        ({"growth": 0.5, "growth_span": 3, "growth_first": -1}, "growth_first=-1 must be 0 or"),
    ],
)
def test_growth_that_cannot_be_is_refused(scores, words):
    with pytest.raises(ConfigError, match=words):
        jaxgen.Scores(**scores)


def test_growth_of_layers_that_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="growth_in=unturned has no effect: no kind of layers"):
        CONFIG.replace(pattern=("global",), kinds={})

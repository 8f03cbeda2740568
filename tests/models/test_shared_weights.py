"""Layers that share weights compute as layers of their own that hold copies of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import settings
from jaxgen.adapters import adapter
from jaxgen.adapters.adapter import AdapterSettings
from jaxgen.errors import ConfigError
from jaxgen.train import flops

SETS = jaxgen.ModelConfig(
    vocab_size=31, context=16, layers=8, d_model=16, heads=4, d_ff=24, norm_at="both",
    pattern=("local", "global"), window=5, layer_weights=2,
    scores=jaxgen.Scores(by_layer="inverse"), init_std=0.3,
)  # fmt: skip
OWN = SETS.replace(layer_weights="own")
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 12))
RUNS = np.array([0, 0, 1, 1])  # of the four periods


@pytest.fixture(scope="module")
def params():
    return random_params(SETS)


def copied(params):
    return params | {"layers": jax.tree.map(lambda leaf: leaf[RUNS], params["layers"])}


def test_two_sets_of_weights_take_turns_one_run_of_periods_each(params):
    assert params["layers"]["1"]["attn"]["q"].shape == (2, 16, 4, 4)
    ours = jaxgen.apply(params, SETS, TOKENS, taps=("*",))
    wanted = jaxgen.apply(copied(params), OWN, TOKENS, taps=("*",))
    np.testing.assert_allclose(ours.logits, wanted.logits, atol=1e-5)
    assert ours.taps.keys() == wanted.taps.keys()
    for name, tap in wanted.taps.items():
        np.testing.assert_allclose(ours.taps[name], tap, atol=1e-5, err_msg=name)


def test_they_decode_what_the_whole_text_has(params):
    cache, logits = jaxgen.empty_cache(SETS, 2, 12), []
    for part in np.split(TOKENS, [7, 8], axis=1):
        out = jaxgen.apply(params, SETS, part, cache=cache)
        cache = out.cache
        logits.append(out.logits)
    whole = jaxgen.apply(params, SETS, TOKENS).logits
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=1e-5)


def test_their_gradient_is_the_sum_over_the_layers_they_serve(params):
    def gradient(config, params):
        def loss(params):
            return jnp.square(jaxgen.apply(params, config, TOKENS).logits).mean()

        return jax.jit(jax.grad(loss))(params)["layers"]

    ours = gradient(SETS.replace(remat="full", unroll=2), params)
    each = gradient(OWN, copied(params))
    runs = jax.tree.map(lambda g: g.reshape(2, 2, *g.shape[1:]).sum(1), each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, runs)


def test_dropout_differs_from_layer_to_layer_of_a_set(params):
    config = SETS.replace(dropout=0.5, pattern=("global",), window=None)
    still = jax.tree.map(jnp.zeros_like, random_params(config))
    still["layers"]["feed"]["down_bias"] = still["layers"]["feed"]["down_bias"] + 1
    still["layers"]["feed_out_norm"]["bias"] = still["layers"]["feed_out_norm"]["bias"] + 1
    out = jaxgen.apply(still, config, TOKENS, key=jax.random.key(0), taps=("layers/out",))
    added = np.diff(np.asarray(out.taps["layers/out"]), axis=0) > 0
    assert len({row.tobytes() for row in added}) == len(added) == 7


def test_an_adapter_beside_one_layer_of_a_set_is_beside_all_of_it():
    given = {"kind": "lora", "rank": 2, "targets": ["*/attn/q"], "layers": [3]}
    plan = adapter.plan(settings.build(AdapterSettings, given), SETS)
    assert {path: ranks.tolist() for path, ranks in plan.ranks.items()} == {
        "layers/1/attn/q": [2, 0]
    }


def test_as_much_is_computed_as_by_layers_of_their_own():
    assert flops.per_token(SETS) == flops.per_token(OWN)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layer_weights": 3}, "layer_weights=3 does not divide the 4 periods of 2 .*: 2 or 4"),
        ({"layer_weights": 1}, "layer_weights=1 must be 2 or more; one set for all .* is shared"),
        ({"layers": 9}, "layers=9 is not a multiple of the 2 layers of pattern"),
        ({"topology": "encoder_decoder"}, "layer_weights=2 needs one tower"),
    ],
)
def test_sets_that_no_layers_can_share_are_refused(more, said):
    with pytest.raises(ConfigError, match=said):
        SETS.replace(**more)

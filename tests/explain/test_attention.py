"""Rollout and value-weighted attention against plain numpy; curves of deletion and insertion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.explain.attention import AttentionMap, attention_maps, rollout
from jaxgen.explain.curves import faithfulness

SIZES = {"vocab_size": 19, "context": 16, "layers": 2, "d_model": 8, "heads": 4, "init_std": 0.3}
TOKENS = np.array([[3, 1, 4, 1, 5]])


def test_rollout_is_the_product_of_the_layers_mean_attention():
    kinds = {"kv_heads": 2, "pattern": ("local", "global"), "window": 2}
    config = jaxgen.ModelConfig(**SIZES, **kinds, scores=jaxgen.Scores(sinks="learned"))
    maps = attention_maps(random_params(config), config, TOKENS)
    total = np.eye(5)
    for _, _, heads in maps:  # what goes to a sink goes to no token
        mean = np.asarray(heads[0]).mean(axis=0)
        total = (0.5 * np.eye(5) + 0.5 * mean / mean.sum(axis=-1, keepdims=True)) @ total
    np.testing.assert_allclose(rollout(maps)[0], total, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rollout(maps).sum(axis=-1), 1, rtol=1e-5)
    assert (np.triu(rollout(maps)[0], 1) == 0).all()


def test_rollout_of_two_towers_goes_through_the_memory():
    config = jaxgen.ModelConfig(**SIZES, topology="encoder_decoder", positions="relative")
    maps = attention_maps(random_params(config), config, TOKENS, source=np.array([[7, 2, 9]]))
    assert [one.part for one in maps] == ["encoder"] * 2 + ["attn", "cross"] * 2
    source, text = np.eye(3, 8), np.eye(8)[3:]
    for part, _, heads in maps:
        mean = np.asarray(heads[0]).mean(axis=0)
        if part == "encoder":
            source = 0.5 * source + 0.5 * mean @ source
        else:
            text = 0.5 * text + 0.5 * mean @ (text if part == "attn" else source)
    np.testing.assert_allclose(rollout(maps)[0], np.concatenate([source, text]), rtol=1e-5)


def test_value_weighted_attention_is_the_norm_of_what_a_head_moves():
    config = jaxgen.ModelConfig(**SIZES, kv_heads=2)
    params = random_params(config)
    taps = jaxgen.apply(params, config, TOKENS, taps=("*/probs", "*/values")).taps
    maps = attention_maps(params, config, TOKENS, weigh="values")
    for layer, one in enumerate(maps):
        probs, values = (
            np.asarray(taps[f"layers/attn/{x}"][layer, 0]) for x in ("probs", "values")
        )
        moved = np.einsum(
            "SNH,NHD->SND", values.repeat(2, axis=1), params["layers"]["attn"]["o"][layer]
        )
        wanted = probs * np.linalg.norm(moved, axis=-1).T[:, None]
        np.testing.assert_allclose(one.heads[0], wanted, rtol=1e-4, atol=1e-6)


def test_attention_of_layers_that_have_none_is_refused():
    delta = jaxgen.Delta(key_heads=1, value_heads=2, key_width=4, value_width=4)
    kinds = {"state": jaxgen.LayerKind(mixer="delta")}
    config = jaxgen.ModelConfig(
        **SIZES, pattern=("state", "global"), kinds=kinds, delta=delta, positions="none"
    )
    with pytest.raises(ConfigError, match="no attention"):
        attention_maps({}, config, TOKENS)
    latent = jaxgen.Latent(kv_rank=8, plain_width=4, rope_width=4, value_width=4)
    config = jaxgen.ModelConfig(**SIZES, latent=latent, positions="rope")
    with pytest.raises(ConfigError, match="weigh=values with latent"):
        attention_maps({}, config, TOKENS, weigh="values")


def planted(embeds):  # the first vector is all that counts, the last one counts against it
    sums = embeds.sum(axis=-1)
    return jnp.stack([3 * sums[:, 0] + 0.1 * sums[:, 1:].sum(axis=-1), sums[:, 2]], axis=-1)


def test_the_true_order_is_more_faithful_than_chance_and_its_reverse_less():
    embeds, key = jnp.ones((8, 2)), jax.random.key(0)
    true = jnp.stack([jnp.eye(8)[0], jnp.eye(8)[2]])
    good = faithfulness(planted, embeds, true, key)
    assert (good.gain > 0.3).all() and (good.spread > 0).all()
    assert (faithfulness(planted, embeds, -true, key).gain < -0.3).all()
    for curve, ends in ((good.deletion, (1, 0)), (good.insertion, (0, 1))):
        np.testing.assert_allclose(curve[:, [0, -1]], [ends, ends], atol=1e-6)
    np.testing.assert_allclose(good.insertion[1, 1:], 1, rtol=1e-6)
    np.testing.assert_allclose(good.random_insertion[1], good.shares, atol=0.4)
    own, random = (
        np.trapezoid(insertion - deletion, good.shares)
        for insertion, deletion in (
            (good.insertion, good.deletion),
            (good.random_insertion, good.random_deletion),
        )
    )
    np.testing.assert_allclose(good.gain, own - random, atol=1e-6)
    # An order is as good for what the vectors lower as for what they raise.
    lower = faithfulness(lambda embeds: -planted(embeds), embeds, -true, key)
    assert (lower.gain > 0.3).all()
    # What a score cannot depend on takes no part in the curve, whatever its value.
    visible = jnp.arange(8) < jnp.array([[2], [3]])
    values = jnp.stack([jnp.eye(8)[1], jnp.eye(8)[2]]).at[:, 7].set(9)
    few = faithfulness(planted, embeds, values, key, visible=visible, points=2)
    np.testing.assert_allclose(few.insertion, [[0, 0.2 / 6.2, 1], [0, 1, 1]], atol=1e-6)
    # From a baseline that is the vectors themselves, nothing changes.
    assert (faithfulness(planted, embeds, true, key, baseline=jnp.ones(2)).insertion == 0).all()
    for counts in ({"points": 0}, {"orders": 1}):
        with pytest.raises(ConfigError, match="must be at least 1 and 2"):
            faithfulness(planted, embeds, true, key, **counts)


def test_maps_are_those_of_their_layers():
    one = AttentionMap("attn", 0, jnp.eye(3)[None, None])
    np.testing.assert_allclose(rollout([one, one])[0], np.eye(3))

"""The gated delta rule: chunks equal single tokens; what a row keeps does not grow, nor go back."""

from pathlib import Path

import fake_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.ops import delta as ops

LINEAR = {"linear": jaxgen.LayerKind(mixer="delta")}
CONFIG = jaxgen.ModelConfig(
    vocab_size=31, context=64, layers=3, d_model=16, heads=4, kv_heads=2, norm="rms_offset",
    positions="rope", biases="none", feed="swiglu", init_std=0.3, qk_norm="head",
    scores=jaxgen.Scores(gate="sigmoid"), pattern=("linear", "global"), kinds=LINEAR,
    delta=jaxgen.Delta(key_heads=2, value_heads=4, key_width=6, value_width=5),
)  # fmt: skip
PARAMS = random_params(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 16))
apply = jax.jit(jaxgen.apply, static_argnums=1)


def ones_by_one(q, k, v, decay, beta, texts):
    """The rule as it is written, in float64, a token at a time; a new text begins with nothing."""
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + ops.EPSILON) for x in (q, k))
    state, out = np.zeros((*v.shape[:1], *v.shape[2:4], q.shape[-1], v.shape[-1])), []
    for i in range(q.shape[1]):
        fresh = texts[:, i] != texts[:, max(i - 1, 0)]
        state = np.where(fresh[:, None, None, None, None], 0, state)
        state = state * np.exp(decay[:, i])[..., None, None]
        known = np.einsum("bkghw,bkh->bkgw", state, k[:, i])
        new = (v[:, i] - known) * beta[:, i][..., None]
        state = state + np.einsum("bkh,bkgw->bkghw", k[:, i], new)
        out.append(np.einsum("bkghw,bkh->bkgw", state, q[:, i]) / np.sqrt(q.shape[-1]))
    return np.stack(out, 1), state


@pytest.mark.parametrize("chunk", [4, 64])
def test_chunks_of_tokens_equal_tokens_one_by_one(chunk, monkeypatch):
    monkeypatch.setattr(ops, "CHUNK", chunk)
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 2, 13, 2, 6))
    v, decay = rng.normal(size=(2, 13, 2, 3, 5)), -rng.uniform(0, 2, (2, 13, 2, 3))
    beta = rng.uniform(size=(2, 13, 2, 3))
    texts = np.where(np.arange(13) < [[5], [13]], 0, 1)
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v, decay, beta)]
    nothing = jnp.zeros((2, 2, 3, 6, 5))
    out, state = ops.delta_rule(*given, nothing, jnp.asarray(texts))
    wanted, last = ones_by_one(q, k, v, decay, beta, texts)
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


def test_a_text_in_pieces_and_ragged_rows_equal_the_whole():
    whole = apply(PARAMS, CONFIG, TOKENS).logits
    lengths = jnp.array([5, 9])
    cache = api.empty_cache(CONFIG, 2, 20).with_valid_lengths(lengths)
    cache = apply(PARAMS, CONFIG, TOKENS[:, :9], cache=cache).cache
    for i in range(4):
        token = jnp.take_along_axis(jnp.asarray(TOKENS), lengths[:, None] + i, axis=1)
        out = apply(PARAMS, CONFIG, token, cache=cache)
        cache = out.cache
        for row in (0, 1):
            np.testing.assert_allclose(out.logits[row, 0], whole[row, lengths[row] + i], atol=3e-5)
    sizes = [
        sum(x.size for x in jax.tree.leaves(api.empty_cache(CONFIG, 2, slots).state))
        for slots in (20, 40)
    ]
    assert sizes[0] == sizes[1] == 2 * 2 * (44 * 3 + 4 * 6 * 5)


def test_packed_documents_do_not_see_each_other():
    segments = np.where(np.arange(16) < 7, 1, 2)[None].repeat(2, 0)
    positions = np.where(np.arange(16) < 7, np.arange(16), np.arange(16) - 7)[None].repeat(2, 0)
    packed = {"segments": segments, "positions": positions}
    found = apply(PARAMS, CONFIG, TOKENS, **packed).logits
    np.testing.assert_allclose(found[:, :7], apply(PARAMS, CONFIG, TOKENS[:, :7]).logits, atol=3e-5)
    np.testing.assert_allclose(found[:, 7:], apply(PARAMS, CONFIG, TOKENS[:, 7:]).logits, atol=3e-5)
    changed = TOKENS.copy()
    changed[:, :7] = (changed[:, :7] + 3) % 31
    again = apply(PARAMS, CONFIG, changed, **packed).logits
    np.testing.assert_array_equal(again[:, 7:], found[:, 7:])


def test_beams_carry_their_states_along():
    found = jaxgen.generate_beams(PARAMS, CONFIG, TOKENS[:, :6], jaxgen.beams(3), length=4)
    best = np.asarray(found.tokens).reshape(2, -1, 4)[:, 0]
    rows = np.concatenate([TOKENS[:, :6], best], axis=1)
    logprobs = jax.nn.log_softmax(apply(PARAMS, CONFIG, rows).logits, axis=-1)
    each = jnp.take_along_axis(logprobs[:, 5:9], best[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.reshape(found.logprobs, each.shape), each, atol=1e-4)


def test_what_a_state_cannot_do_is_refused_by_name():
    cache = api.empty_cache(CONFIG, 2, 8)
    with pytest.raises(ConfigError, match="state that can't go back"):
        cache.rewind(jnp.array([1, 1]))
    with pytest.raises(ConfigError, match="can't go back; decode without a draft"):
        jaxgen.generate_speculative(
            *(PARAMS, CONFIG, PARAMS, CONFIG, TOKENS[:, :4], jax.random.key(0)), length=4, count=2
        )
    other = CONFIG.replace(delta=None, kinds={}, pattern=("global",))
    with pytest.raises(ConfigError, match="3 layers, but there are 1"):
        jaxgen.apply(PARAMS, CONFIG, TOKENS[:, :4], cache=api.empty_cache(other, 2, 8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delta": None}, "delta=None with 1 kinds of layers"),
        ({"prompt": "both"}, "prompt=both is not known with layers of mixer=delta"),
        ({"positions": "alibi", "rope": jaxgen.Rope()}, "positions=alibi is not known"),
        (
            {"kinds": {"linear": jaxgen.LayerKind(mixer="delta", positions="none")}},
            "no other field has an effect",
        ),
    ],
)
def test_settings_that_do_not_fit_the_rule_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        CONFIG.replace(**changes)
    with pytest.raises(ConfigError, match=r"delta\.value_heads=3 is not a multiple"):
        jaxgen.Delta(key_heads=2, value_heads=3)


def test_the_rule_and_latent_attention_on_eight_devices_train_as_on_one():
    assert fake_devices.run_checks(Path(__file__).with_name("mixers_program.py"), 8) == []


def test_a_large_model_decodes_in_the_abstract():
    config = jaxgen.ModelConfig(
        vocab_size=151936, context=262144, layers=48, d_model=2048, heads=16, kv_heads=2,
        head_dim=256, d_ff=5632, norm="rms_offset", positions="rope", biases="none", feed="swiglu",
        rope=jaxgen.Rope(theta=1e7, share=0.25), qk_norm="head", output="untied",
        scores=jaxgen.Scores(gate="sigmoid"), pattern=("linear",) * 3 + ("global",), kinds=LINEAR,
        delta=jaxgen.Delta(), param_dtype="bfloat16", compute_dtype="bfloat16",
    )  # fmt: skip
    shapes = jaxgen.abstract(config)
    assert shapes["layers"]["0"]["attn"]["v"].shape == (12, 2048, 16, 2, 128)
    cache = jax.eval_shape(lambda: api.empty_cache(config, 2, 262144))
    assert cache.full.k.shape == (12, 2, 2, 262144, 256)
    assert cache.state.matrix.shape == (36, 2, 16, 2, 128, 128)
    token = jax.ShapeDtypeStruct((2, 1), jnp.int32)
    out = jax.eval_shape(lambda p, t, c: jaxgen.apply(p, config, t, cache=c), shapes, token, cache)
    assert out.logits.shape == (2, 1, 151936) and out.cache.state.inputs.shape == (36, 2, 8192, 3)

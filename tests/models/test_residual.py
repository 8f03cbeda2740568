"""Several streams, vectors by layer, shared keys: decoding equals the whole, and all is counted."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import LayerKind, PerLayer, Residual, tree
from jaxgen.errors import ConfigError
from jaxgen.models import api, serving
from jaxgen.profile import chips
from jaxgen.run import forecast
from jaxgen.run.settings import Settings
from jaxgen.train import flops
from jaxgen.train.settings import TrainSettings

KINDS = {
    "wide": LayerKind(head_dim=8, kv_heads=1, values="keys"),
    "local_shared": LayerKind(reach="window", keys_of="local", d_ff=40),
    "wide_shared": LayerKind(head_dim=8, kv_heads=1, keys_of="wide", sparsity=0.5),
}
CONFIG = jaxgen.ModelConfig(
    vocab_size=31, context=64, layers=4, d_model=16, heads=4, kv_heads=2, d_ff=24, norm="rms",
    norm_at="both", positions="rope", biases="none", feed="geglu", init_std=0.3, qk_norm="qkv",
    pattern=("local", "wide", "local_shared", "wide_shared"), kinds=KINDS, window=5,
    residual=Residual(streams=3, clip=0.3, laurel=4, gain="learned"),
    per_layer=PerLayer(width=6, vocab_size=20),
)  # fmt: skip
PARAMS = random_params(CONFIG)
TWO = CONFIG.replace(
    layers=2,
    window=None,
    pattern=("wide", "wide_shared"),
    kinds={name: kind for name, kind in KINDS.items() if name != "local_shared"},
)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 16))
apply = jax.jit(jaxgen.apply, static_argnums=1)


@pytest.fixture(scope="module")
def whole():
    return np.asarray(apply(PARAMS, CONFIG, TOKENS).logits)


def pieces(layout, lengths, whole, cache=None):
    """Check that rows of these lengths and two more tokens, read in pieces, equal the whole."""
    lengths = np.array(lengths)
    if cache is None:
        cache = api.empty_cache(CONFIG, 2, 20, layout=layout)
        cache = cache.with_valid_lengths(jnp.array(lengths))
        cache = apply(PARAMS, CONFIG, TOKENS[:, :9], cache=cache).cache
    for _ in range(2):
        tokens = TOKENS[[0, 1], lengths][:, None]
        out = apply(PARAMS, CONFIG, tokens, cache=cache)
        cache, at, lengths = out.cache, lengths, lengths + 1
        np.testing.assert_allclose(out.logits[:, 0], whole[[0, 1], at], atol=3e-5)
    return cache


def test_a_text_in_pieces_and_ragged_rows_equal_the_whole_and_go_back(whole):
    cache = pieces("contiguous", [5, 9], whole)
    pieces("contiguous", [3, 10], whole, cache.rewind(jnp.array([3, 10])))


def test_rings_of_local_layers_serve_those_that_share_them(whole):
    pieces("ring", [5, 9], whole)


def test_shared_layers_have_no_cache_and_kinds_have_buffers_of_their_sizes():
    cache = api.empty_cache(CONFIG, 2, 20)
    assert (cache.full.k.shape, cache.sliding.k.shape) == ((1, 2, 1, 20, 8), (1, 2, 2, 20, 4))
    assert cache.max_rewind is None and cache.can_branch
    ring = api.empty_cache(CONFIG, 2, 20, layout="ring")
    assert ring.sliding.k.shape[3] == 5 and ring.max_rewind == 1 and not ring.can_branch
    keys = tree.flatten(jaxgen.abstract(CONFIG))
    assert [f"layers/{i}/attn/k" in keys for i in range(4)] == [True, True, False, False]
    assert "layers/1/attn/v" not in keys
    # One layer with a window, one without, and none that shares; float32.
    settings = Settings(model=CONFIG, train=TrainSettings(batch=2))
    plan = forecast.plan_memory(settings, chips.CHIPS["v5p"], 1)
    assert plan.cache == 4 * 64 * 2 * (2 * 4 + 8)


@pytest.mark.skipif(not os.environ.get("JAXGEN_NIGHTLY"), reason="compiles for half a minute")
def test_drafts_and_beams_follow_the_model():
    config = CONFIG.replace(layers=7)  # a period and a part of one
    params, draft = random_params(config), random_params(config, seed=1)
    key, prompt = jax.random.key(0), TOKENS[:, :6]
    plain = jaxgen.generate(params, config, prompt, key, length=6)
    found = jaxgen.generate_speculative(
        params, config, draft, config, prompt, key, length=6, count=2
    )
    np.testing.assert_array_equal(found.tokens, plain)
    beams = jaxgen.generate_beams(params, config, prompt, jaxgen.beams(3), length=4)
    best = np.asarray(beams.tokens).reshape(2, -1, 4)[:, 0]
    rows = np.concatenate([prompt, best], axis=1)
    logprobs = jax.nn.log_softmax(apply(params, config, rows).logits, axis=-1)
    each = jnp.take_along_axis(logprobs[:, 5:9], best[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.reshape(beams.logprobs, each.shape), each, atol=1e-4)


def test_weights_as_decoding_reads_them_compute_the_same(monkeypatch):
    params = random_params(TWO)
    whole = np.asarray(apply(params, TWO, TOKENS).logits)
    monkeypatch.setattr("jaxgen.nn.unroll.UNROLL_LIMITS", {"cpu": (0, 48)})
    ready = serving.ready(params, TWO)
    assert serving.is_unrolled(ready)
    cache = api.empty_cache(TWO, 2, 20, unrolled=True)
    parts = []
    for begin, end in ((0, 9), (9, 10)):
        out = jaxgen.apply(ready, TWO, TOKENS[:, begin:end], cache=cache)
        cache = out.cache
        parts.append(out.logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole[:, :10], atol=3e-5)
    bytes_ = serving.ready(params, TWO, weights="int8")
    assert not hasattr(params["per_layer"]["tokens"], "lookup")
    assert hasattr(bytes_["per_layer"]["tokens"], "lookup")
    rounded = np.asarray(apply(bytes_, TWO, TOKENS).logits)
    assert 0 < np.abs(rounded - whole).mean() < 0.1 * np.abs(whole).mean()


def test_training_moves_all_that_is_new_and_cuts_coefficients():
    params = random_params(TWO)

    def loss(params):
        out = jaxgen.apply(params, TWO, TOKENS, key=jax.random.key(0))
        return jnp.mean(out.logits**2)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    grads = tree.flatten(grads)
    assert all(np.isfinite(leaf).all() for leaf in grads.values())
    assert not {path for path, leaf in grads.items() if not np.any(leaf)}
    cut = {
        path: jnp.clip(leaf, -0.3, 0.3) if path.endswith(("predict", "correct")) else leaf
        for path, leaf in tree.flatten(params).items()
    }
    wanted = jnp.mean(apply(tree.unflatten(cut), TWO, TOKENS).logits ** 2)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert abs(jnp.mean(apply(params, TWO, TOKENS).logits ** 2) / wanted - 1) > 1e-3


def test_flops_count_what_is_multiplied():
    d, streams = 16, 3
    widths = [24, 24, 40, 24]
    q = {"local": 16, "wide": 32, "local_shared": 16, "wide_shared": 32}
    kv = {"local": 2 * 8, "wide": 8, "local_shared": 0, "wide_shared": 0}
    kinds = CONFIG.pattern
    layer = sum(2 * d * q[kind] + d * kv[kind] for kind in kinds) + sum(3 * d * f for f in widths)
    layer += 4 * (2 * d * 4 + 2 * d * 6 + streams * d + streams**3 + streams**2)
    outside = 2 * 2 * d * d + d * 4 * 6 + 31 * d
    mixing = 4 * (streams**2 + streams) * d
    attention = sum(2 * q[kind] * CONFIG.context for kind in kinds)
    assert flops.per_token(CONFIG) == 6 * (layer + outside + mixing + attention)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topology": "encoder", "head": "none"}, "keys_of is not known with topology=encoder"),
        ({"parallel": "one_norm", "norm_at": "pre"}, "residual.streams=3 is not known with paral"),
        ({"pattern": ("local_shared", "local", "wide", "wide_shared")}, "no layer of pattern befo"),
        ({"kinds": KINDS | {"wide_shared": LayerKind(keys_of="local")}}, "both need one reach"),
        ({"kinds": KINDS | {"wide_shared": LayerKind(keys_of="wide")}}, "heads of other sizes"),
        ({"kinds": KINDS | {"wide": LayerKind(kv_heads=3)}}, "kinds.wide.kv_heads=3"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        CONFIG.replace(**changes)


def test_inputs_and_layers_that_such_a_model_has_not_are_refused():
    with pytest.raises(ConfigError, match=r"per_layer.*give tokens"):
        jaxgen.apply(PARAMS, CONFIG, inputs_embeds=jnp.zeros((1, 3, 16)))
    with pytest.raises(ConfigError, match=r"residual\.streams=3: earlier layers have no logits"):
        api.early_logits(PARAMS, CONFIG, jnp.asarray(TOKENS), (1,))
    for make in (lambda: Residual(clip=1.0), lambda: PerLayer(width=0), lambda: Residual(laurel=0)):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.skipif(not os.environ.get("JAXGEN_NIGHTLY"), reason="traces 35 layers")
def test_a_large_model_decodes_in_the_abstract():
    names = ["local"] * 4 + ["global"]
    pattern = (*(f"{n}_sparse" for n in names * 2), *names * 2, *(f"{n}_shared" for n in names * 3))
    kinds = {
        f"{name}{word}": LayerKind(**fields, reach="window" if name == "local" else None)
        for name in ("local", "global")
        for word, fields in (("_sparse", {"sparsity": 0.95}), ("_shared", {"keys_of": name}))
    }
    config = jaxgen.ModelConfig(
        vocab_size=262400, context=32768, layers=35, d_model=2048, heads=8, kv_heads=2,
        head_dim=256, d_ff=16384, norm="rms", norm_at="both", positions="rope", biases="none",
        feed="geglu", qk_norm="qkv", pattern=pattern, kinds=kinds, window=512,
        residual=Residual(streams=4, laurel=64), per_layer=PerLayer(vocab_size=262144),
        param_dtype="bfloat16", compute_dtype="bfloat16",
    )  # fmt: skip
    shapes = jaxgen.abstract(config)
    assert shapes["per_layer"]["tokens"].shape == (262144, 35 * 256)
    assert tree.count(shapes) == pytest.approx(6.87e9, rel=0.01)  # Gemma 3n E4B
    cache = jax.eval_shape(lambda: api.empty_cache(config, 1, 32768, layout="ring"))
    assert cache.full.k.shape[0] == 4 and cache.sliding.k.shape[0] == 16
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    out = jax.eval_shape(lambda p, t, c: jaxgen.apply(p, config, t, cache=c), shapes, token, cache)
    assert out.logits.shape == (1, 1, 262400)

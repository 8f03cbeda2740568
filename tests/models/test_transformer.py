"""The Transformer agrees with itself along every path: cached, packed, scanned, rematerialised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.models import api

BASE = jaxgen.ModelConfig(
    vocab_size=61, context=32, layers=3, d_model=16, heads=4, init_std=0.3, unroll=1
)
# One variant per choice that GPT-2 and Llama need, and some of their mixtures.
VARIANTS = {
    "gpt2": {},
    "post_norm": {"norm_at": "post"},
    "both_norms": {"norm_at": "both", "norm": "rms"},
    "rms": {"norm": "rms"},
    "rope": {"positions": "rope"},
    "rope_theta": {"positions": "rope", "rope_theta": 100.0},
    "sinusoid": {"positions": "sinusoid"},
    "no_positions": {"positions": "none"},
    "gelu": {"feed": "gelu"},
    "relu": {"feed": "relu"},
    "silu": {"feed": "silu"},
    "swiglu": {"feed": "swiglu"},
    "geglu": {"feed": "geglu"},
    "no_biases": {"biases": "none"},
    "qkv_biases": {"biases": "qkv"},
    "attention_biases": {"biases": "attention"},
    "grouped": {"kv_heads": 2},
    "multi_query": {"kv_heads": 1},
    "wide_heads": {"head_dim": 6},
    "untied": {"output": "untied"},
    "score_cap": {"score_cap": 2.0},
    "logit_cap": {"logit_cap": 3.0},
    "local": {"pattern": ("local",), "window": 3},
    "alternating": {"pattern": ("local", "global"), "window": 3},
    "short_rest": {"pattern": ("local", "local", "global", "local"), "window": 2},
    "narrow_feed": {"d_ff": 10},
    "unrolled": {"unroll": 3},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "bfloat16_params": {"param_dtype": "bfloat16"},
    "llama": {
        "norm": "rms",
        "positions": "rope",
        "feed": "swiglu",
        "biases": "none",
        "kv_heads": 2,
        "output": "untied",
    },
    "gemma2": {
        "norm": "rms",
        "norm_at": "both",
        "positions": "rope",
        "feed": "geglu",
        "biases": "none",
        "pattern": ("local", "global"),
        "window": 4,
        "score_cap": 5.0,
        "logit_cap": 3.0,
    },
}


@pytest.fixture(params=VARIANTS)
def config(request):
    return BASE.replace(**VARIANTS[request.param])


def make(config, batch=2, length=9, seed=0):
    params = jaxgen.init(config, jax.random.key(seed))
    # Zero biases and unit scales would hide a bias that is never added.
    params = tree.map_paths(
        lambda path, leaf: leaf + 0.1 * jax.random.normal(jax.random.key(len(path)), leaf.shape),
        params,
    )
    params = jax.tree.map(lambda x, y: x.astype(y.dtype), params, api.abstract(config))
    tokens = jax.random.randint(jax.random.key(seed + 1), (batch, length), 0, config.V)
    return params, tokens


def tolerance(config):
    return 3e-2 if config.compute_dtype == "bfloat16" else 2e-5


def test_cached_decoding_matches_full_forward(config):
    params, tokens = make(config)
    whole = jaxgen.apply(params, config, tokens)
    cache = api.empty_cache(config, 2, 12)
    parts = []
    for piece in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:8], tokens[:, 8:]):
        out = jaxgen.apply(params, config, piece, cache=cache)
        cache = out.cache
        parts.append(out.logits)
    np.testing.assert_allclose(
        jnp.concatenate(parts, 1), whole.logits, atol=tolerance(config), rtol=0
    )
    assert cache.length.tolist() == [9, 9]


def test_ragged_prompts_in_one_cache_match_each_alone(config):
    params, tokens = make(config)
    lengths = jnp.array([3, 7])
    cache = api.hidden(params, config, tokens[:, :8], cache=api.empty_cache(config, 2, 12)).cache
    cache = cache.rewind(lengths)
    follow = jnp.array([[5], [6]])
    together = jaxgen.apply(params, config, follow, cache=cache).logits[:, 0]
    for row, length in enumerate(lengths.tolist()):
        alone = jnp.concatenate([tokens[row, :length], follow[row]])[None]
        wanted = jaxgen.apply(params, config, alone).logits[0, -1]
        np.testing.assert_allclose(together[row], wanted, atol=tolerance(config), rtol=0)


def test_packed_documents_match_each_alone(config):
    params, tokens = make(config, batch=1, length=10)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2]])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    packed = jaxgen.apply(params, config, tokens, segments=segments, positions=positions).logits
    parts = [jaxgen.apply(params, config, t).logits for t in (tokens[:, :4], tokens[:, 4:])]
    np.testing.assert_allclose(packed, jnp.concatenate(parts, 1), atol=tolerance(config), rtol=0)


def test_changing_one_packed_document_leaves_the_other_bit_equal(config):
    params, tokens = make(config, batch=1, length=10)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2]])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    changed = tokens.at[0, 1].set((tokens[0, 1] + 1) % config.V)
    first, second = (
        jaxgen.apply(params, config, t, segments=segments, positions=positions).logits
        for t in (tokens, changed)
    )
    assert (first[:, 4:] == second[:, 4:]).all()
    assert (first[:, 1:4] != second[:, 1:4]).any()


def test_future_tokens_change_nothing(config):
    params, tokens = make(config)
    changed = tokens.at[:, 6:].set(0)
    first, second = (jaxgen.apply(params, config, t).logits for t in (tokens, changed))
    assert (first[:, :6] == second[:, :6]).all()


def test_scan_matches_unrolled_layers(config):
    params, tokens = make(config)
    scanned = jaxgen.apply(params, config.replace(unroll=1), tokens).logits
    unrolled = jaxgen.apply(params, config.replace(unroll=3), tokens).logits
    np.testing.assert_allclose(scanned, unrolled, atol=tolerance(config), rtol=0)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    config = BASE.replace(**VARIANTS["gemma2"])
    params, tokens = make(config)

    def loss(params, config):
        return jaxgen.apply(params, config, tokens).logits.var()

    plain = jax.grad(loss)(params, config)
    saved = jax.grad(loss)(params, config.replace(remat=remat))
    for path, grad in tree.flatten(plain).items():
        np.testing.assert_allclose(tree.flatten(saved)[path], grad, atol=1e-5, err_msg=path)
    text = str(jax.make_jaxpr(lambda p: jax.grad(loss)(p, config.replace(remat=remat)))(params))
    assert "remat" in text or "checkpoint" in text


def test_init_holds_no_tracer_and_matches_abstract(config):
    params = jaxgen.init(config, jax.random.key(0))
    shapes, letters = tree.flatten(jaxgen.abstract(config)), tree.flatten(jaxgen.axes(config))
    flat = tree.flatten(params)
    assert flat.keys() == shapes.keys() == letters.keys()
    for path, leaf in flat.items():
        assert not isinstance(leaf, jax.core.Tracer), path
        assert (leaf.shape, leaf.dtype) == (shapes[path].shape, shapes[path].dtype), path
        assert len(letters[path]) == leaf.ndim, path


def test_every_parameter_reaches_the_logits(config):
    params, tokens = make(config)

    def loss(params):
        return (jaxgen.apply(params, config, tokens).logits ** 2).sum()

    for path, grad in tree.flatten(jax.grad(loss)(params)).items():
        # Softmax does not see what a key bias adds to all keys alike, unless scores are capped
        # or keys are turned by position first.
        if path.endswith("k_bias") and config.score_cap is None and config.positions != "rope":
            continue
        assert jnp.abs(grad).max() > 0, path


def test_layers_of_a_scanned_stack_start_different():
    params = jaxgen.init(BASE, jax.random.key(0))
    q = params["layers"]["attn"]["q"]
    assert not (q[0] == q[1]).any()


def test_dropout_acts_with_a_key_only_and_differs_by_layer_and_key():
    config = BASE.replace(dropout=0.5)
    params, tokens = make(config)
    still = jaxgen.apply(params, config, tokens).logits
    assert (still == jaxgen.apply(params, BASE, tokens).logits).all()
    one, two = (
        jaxgen.apply(params, config, tokens, key=jax.random.key(k), taps=("layers/out",))
        for k in (1, 2)
    )
    assert (one.logits != two.logits).any() and (one.logits != still).any()


def test_taps_return_the_activations_they_name():
    params, tokens = make(BASE)
    out = jaxgen.apply(params, BASE, tokens, taps=("layers/*_out", "hidden"))
    assert {p: v.shape for p, v in out.taps.items()} == {
        "layers/attn_out": (3, 2, 9, 16),
        "layers/feed_out": (3, 2, 9, 16),
        "hidden": (2, 9, 16),
    }
    assert (out.taps["hidden"] == out.hidden).all()


def test_inputs_without_use_are_refused_by_name():
    params, tokens = make(BASE)
    with pytest.raises(jaxgen.errors.ConfigError, match="'layer/out'.*match nothing"):
        jaxgen.apply(params, BASE, tokens, taps=("layer/out",))
    with pytest.raises(jaxgen.errors.ConfigError, match="memory="):
        jaxgen.apply(params, BASE, tokens, memory=jnp.zeros((2, 3, 16)))
    with pytest.raises(jaxgen.errors.ConfigError, match="40 tokens do not fit context of 32"):
        jaxgen.apply(params, BASE, jnp.zeros((1, 40), jnp.int32))
    cache = api.empty_cache(BASE, 2, 8)
    with pytest.raises(jaxgen.errors.ConfigError, match="9 tokens do not fit the cache's"):
        jaxgen.apply(params, BASE, tokens, cache=cache)
    with pytest.raises(jaxgen.errors.ConfigError, match=r"segments= and cache="):
        jaxgen.apply(params, BASE, tokens[:, :4], cache=cache, segments=tokens[:, :4])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1.5b", 1_557_611_200),
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, count):
    assert tree.count(jaxgen.abstract(jaxgen.preset(name))) == count


def test_apply_jits_with_config_static():
    params, tokens = make(BASE)
    jitted = jax.jit(jaxgen.apply, static_argnames=("config", "taps"))
    wanted = jaxgen.apply(params, BASE, tokens).logits
    np.testing.assert_allclose(jitted(params, BASE, tokens).logits, wanted, atol=1e-5)


def test_weights_are_arguments_not_constants():
    config = BASE.replace(d_model=64, layers=2)
    params, tokens = make(config)
    program = jax.jit(jaxgen.apply, static_argnames="config").lower(params, config, tokens)
    assert len(program.as_text()) < 200_000


def test_a_leaf_may_bring_its_own_product():
    @jax.tree_util.register_dataclass
    @jaxgen.config.dataclass
    class Doubled:
        w: jax.Array

        def contract(self, equation, x, dtype):
            return 2 * jnp.einsum(equation, x, self.w)

    params, tokens = make(BASE)
    flat = tree.flatten(params)
    path = "layers/feed/up"
    doubled = jaxgen.apply(tree.unflatten(flat | {path: 2 * flat[path]}), BASE, tokens).logits
    wrapped = jaxgen.apply(tree.unflatten(flat | {path: Doubled(flat[path])}), BASE, tokens).logits
    np.testing.assert_allclose(doubled, wrapped, atol=1e-5)

"""The Transformer agrees with itself along every path: cached, packed, scanned, rematerialised."""

import dataclasses
import operator
import typing
from functools import lru_cache

import as_users
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import settings, tree
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.nn.unroll import UNROLL_LIMITS
from jaxgen.ops.memory import Memory

BASE = jaxgen.ModelConfig(
    vocab_size=61, context=32, layers=3, d_model=16, heads=4, init_std=0.3, unroll=1
)
LLAMA3 = jaxgen.config.RopeScaling(kind="llama3", factor=4.0, original_context=8, low=0.2, high=0.9)
YARN = jaxgen.config.RopeScaling(kind="yarn", factor=4.0, original_context=32, high=8.0)
# Every choice that decoders have is in one of these; those that don't touch each other share one.
VARIANTS = {
    "gpt2": {},
    "post_norm": {
        "norm_at": "post",
        "feed": "gelu",
        "embed_norm": "norm",
        "position_offset": 2,
        "token_types": 2,
    },
    "waves": {"positions": "sinusoid_t2t", "position_offset": 2, "biases": "no_keys"},
    "projected_tokens": {"embed": jaxgen.Embed(width=10, project="tokens", norm="tokens")},
    "learned_relative": {"positions": "learned_relative", "relative_buckets": 6},
    "sinusoid": {
        "positions": "sinusoid",
        "embed_scale": "root",
        "feed": "relu",
        "kv_heads": 1,
        "output_bias": "bias",
    },
    "relative": {
        "positions": "relative",
        "relative_buckets": 6,
        "relative_distance": 12,
        "norm": "rms",
        "norm_at": "both",
        "output_scale": "root",
    },
    "no_positions": {
        "norm": "rms_unit",
        "positions": "none",
        "feed": "silu",
        "biases": "attention",
        "head_dim": 6,
    },
    "qkv_biases": {"positions": "rope", "rope_theta": 100.0, "biases": "qkv", "d_ff": 10},
    "caps": {"score_cap": 2.0, "logit_cap": 3.0, "unroll": 3},
    "local": {"pattern": ("local",), "window": 3},
    "alternating": {
        "pattern": ("local", "global"),
        "window": 3,
        "embed_norm": "first",
        "head_layer": jaxgen.HeadLayer(kind="norm", activation="silu"),
    },
    "short_rest": {"pattern": ("local", "local", "global", "local"), "window": 2},
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
    "parallel": {
        "parallel": "two_norms",
        "positions": "alibi",
        "scores": jaxgen.Scores(alibi="scaled"),
        "biases": "norms",
        "feed": "relu2",
        "embed_scale": 1.5,
        "output_scale": 2.0,
        "residual_scale": 0.7,
    },
    "partial_rope": {
        "parallel": "one_norm",
        "biases": "feed",
        "positions": "rope",
        "rope": jaxgen.Rope(share=0.5, pairs="neighbours"),
        "qk_norm": "unit",
        "scores": jaxgen.Scores(sinks="learned", by_layer="inverse", multiplier=0.3),
        "feed": "reglu",
    },
    "kinds_of_layers": {
        "norm": "rms",
        "norm_at": "out",
        "positions": "rope",
        "qk_norm": "heads",
        "pattern": ("chunks", "far", "local"),
        "kinds": {
            "chunks": jaxgen.LayerKind(reach="chunk"),
            "far": jaxgen.LayerKind(positions="none"),
            "local": jaxgen.LayerKind(rope=jaxgen.Rope(theta=50.0)),
        },
        "window": 3,
        "feed": "geglu_exact",
    },
    "latent": {
        "positions": "rope",
        "rope": jaxgen.Rope(pairs="neighbours", scaling=dataclasses.replace(YARN, mscale=0.8)),
        "latent": jaxgen.Latent(q_rank=6, kv_rank=9, rope_width=4, plain_width=5, value_width=3),
        "biases": "attention",
        "norm": "rms",
        "pattern": ("local", "global"),
        "window": 4,
    },
    "experts": {
        "feed": "swiglu_clamped",
        "experts": jaxgen.Experts(number=3, d_ff=6, router_bias="bias", shared=4, first_dense=1),
    },
    "norm_of_each_head": {
        "qk_norm": "each",
        "positions": "rope",
        "rope": jaxgen.Rope(pairs="halves_back"),
        "scores": jaxgen.Scores(growth=0.5, growth_span=3),
    },
    "llama3_rope": {"positions": "rope", "rope_scaling": LLAMA3, "qk_norm": "head"},
    "gemma3": {
        "norm": "rms_offset",
        "norm_at": "both",
        "positions": "rope",
        "rope_theta_local": 50.0,
        "rope_scaling": YARN,
        "qk_norm": "head",
        "query_scalar": 9.0,
        "embed_scale": "root",
        "feed": "geglu",
        "biases": "none",
        "kv_heads": 2,
        "pattern": ("local", "global"),
        "window": 4,
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


CHOICES = """
norm norm_at parallel positions embed.scale embed.norm embed.project qk_norm feed biases
output output_scale output_bias
""".split()
# For these the tests of towers and of families have models.
ELSEWHERE = {"disentangled", "qkv", "no_qkv", "gelu_sigmoid"}  # in tests of their own


def test_every_choice_is_in_a_variant():
    hints = typing.get_type_hints(jaxgen.ModelConfig)
    hints |= {f"embed.{k}": v for k, v in typing.get_type_hints(jaxgen.Embed).items()}
    configs = [BASE.replace(**fields) for fields in VARIANTS.values()]
    for name in CHOICES:
        hint = next((h for h in typing.get_args(hints[name]) if typing.get_args(h)), hints[name])
        tried = {operator.attrgetter(name)(config) for config in configs}
        assert set(typing.get_args(hint)) - ELSEWHERE <= tried, name


@pytest.fixture(params=VARIANTS)
def config(request):
    return BASE.replace(**VARIANTS[request.param])


@lru_cache
def make(config, seed=0):
    tokens = np.random.default_rng(seed + 1).integers(0, config.V, (2, 9))
    return random_params(config, seed), jnp.asarray(tokens)


apply = jax.jit(jaxgen.apply, static_argnames=("config", "taps"))


def tolerance(config):
    # Two orders of the same bfloat16 products differ; each is as far as 0.096 from float32's.
    return 1e-1 if config.compute_dtype == "bfloat16" else 2e-5


def prefilled(params, config, tokens, lengths):
    """A cache that went through 8 tokens a row and remembers only `lengths` of them."""
    cache = api.empty_cache(config, 2, 12)
    return apply(params, config, tokens[:, :8], cache=cache).cache.rewind(jnp.array(lengths))


def test_cached_decoding_matches_full_forward(config):
    params, tokens = make(config)
    whole = apply(params, config, tokens).logits
    cache = prefilled(params, config, tokens, [4, 4])
    for place in range(4, 9):
        out = apply(params, config, tokens[:, place : place + 1], cache=cache)
        cache = out.cache
        np.testing.assert_allclose(
            out.logits[:, 0], whole[:, place], atol=tolerance(config), rtol=0
        )
    assert cache.length.tolist() == [9, 9]


def test_ragged_prompts_in_one_cache_match_each_alone(config):
    params, tokens = make(config)
    cache = prefilled(params, config, tokens, [3, 7])
    together = apply(params, config, jnp.array([[5], [6]]), cache=cache).logits[:, 0]
    alone = apply(params, config, tokens.at[0, 3].set(5).at[1, 7].set(6)).logits
    wanted = jnp.stack([alone[0, 3], alone[1, 7]])
    np.testing.assert_allclose(together, wanted, atol=tolerance(config), rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "short_rest"])
def test_a_prompt_cached_in_pieces_matches_full_forward(name):
    config = BASE.replace(**VARIANTS[name])
    params, tokens = make(config)
    cache = api.empty_cache(config, 2, 12)
    parts = []
    for piece in (tokens[:, :5], tokens[:, 5:7], tokens[:, 7:]):
        out = apply(params, config, piece, cache=cache)
        cache = out.cache
        parts.append(out.logits)
    whole = apply(params, config, tokens).logits
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5, rtol=0)


# Row 0 packs documents of 4 and 5 tokens, row 1 is one document.
SEGMENTS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2], [1] * 9])
POSITIONS = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4], list(range(9))])


def packed(params, config, tokens):
    return apply(params, config, tokens, segments=SEGMENTS, positions=POSITIONS).logits


def test_packed_documents_match_each_alone(config):
    params, tokens = make(config)
    found = packed(params, config, tokens)
    first = apply(params, config, tokens).logits
    second = apply(params, config, jnp.roll(tokens, -4, axis=1)).logits
    wanted = jnp.concatenate([first[0, :4], second[0, :5]])
    np.testing.assert_allclose(found[0], wanted, atol=tolerance(config), rtol=0)
    np.testing.assert_allclose(found[1], first[1], atol=tolerance(config), rtol=0)


def test_changing_one_packed_document_leaves_the_other_bit_equal(config):
    params, tokens = make(config)
    changed = tokens.at[0, 1].set((tokens[0, 1] + 1) % config.V)
    first, second = (packed(params, config, t)[0] for t in (tokens, changed))
    assert (first[4:] == second[4:]).all()
    assert (first[1:4] != second[1:4]).any()


def test_future_tokens_change_nothing(config):
    params, tokens = make(config)
    changed = tokens.at[:, 6:].set(0)
    first, second = (apply(params, config, t).logits for t in (tokens, changed))
    assert (first[:, :6] == second[:, :6]).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "short_rest"])
def test_scan_matches_unrolled_layers(name):
    config = BASE.replace(**VARIANTS[name])
    params, tokens = make(config)
    scanned = apply(params, config, tokens).logits
    unrolled = apply(params, config.replace(unroll=3), tokens).logits
    np.testing.assert_allclose(scanned, unrolled, atol=tolerance(config), rtol=0)


def test_layers_are_in_line_where_the_table_says_so(monkeypatch):
    config = BASE.replace(unroll=None)
    params, tokens = make(config)

    def loops(**fields):
        def loss(params):
            return jnp.sum(api.hidden(params, config.replace(**fields), tokens).features)

        return jax.jit(jax.grad(loss)).lower(params).as_text().count("stablehlo.while")

    assert loops() == loops(unroll=1) == 2  # too small to be worth it
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 3))
    assert loops() == 0 and loops(unroll=1) == 2
    assert loops(remat="full") == 2  # one layer's activations at a time
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 2))
    assert loops() == 2


@pytest.mark.parametrize(
    ("fields", "again"),
    [
        ({"unroll": 1}, 1),
        ({"unroll": 3}, 3),
        ({"unroll": 3, "pattern": ("global", "global")}, 3),
        ({"unroll": 1, "pattern": ("global", "global"), "layers": 5}, 3),  # a loop, and a rest
    ],
)
def test_what_remat_computes_again_is_not_merged_with_the_first_time(fields, again):
    bare = {"norm": "rms", "biases": "none", "positions": "none"}  # little else to compile
    config = BASE.replace(**bare, **fields, remat="full")
    params, tokens = make(config)

    def tanhs(config):
        def loss(params):
            return jnp.sum(apply(params, config, tokens).logits ** 2)

        return as_users.compile(jax.jit(jax.grad(loss)).lower(params)).as_text().count(" tanh(")

    assert tanhs(config) == tanhs(config.replace(remat="none")) + again


def test_remat_changes_no_gradient():
    config = BASE.replace(**VARIANTS["gemma2"])
    params, tokens = make(config)

    def loss(params, config):
        return jaxgen.apply(params, config, tokens).logits.var()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    plain = tree.flatten(grad(params, config))
    for remat in ("dots", "full"):
        other = config.replace(remat=remat)
        saved = tree.flatten(grad(params, other))
        for path, wanted in plain.items():
            np.testing.assert_allclose(saved[path], wanted, atol=1e-5, err_msg=f"{remat}: {path}")
        text = str(grad.trace(params, other).jaxpr)
        assert "remat" in text or "checkpoint" in text


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "short_rest"])
def test_init_holds_no_tracer_and_matches_abstract(name):
    config = BASE.replace(**VARIANTS[name])
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
        return (api.apply(params, config, tokens).logits ** 2).sum()

    for path, grad in tree.flatten(jax.jit(jax.grad(loss))(params)).items():
        # Softmax does not see what a key bias adds to all keys alike, unless scores are capped
        # or keys are turned by position first.
        if path.endswith("k_bias") and config.score_cap is None and config.positions != "rope":
            continue
        assert jnp.abs(grad).max() > 0, path


def test_a_scanned_layer_is_traced_once():
    config, calls = BASE.replace(d_model=12), []

    def counted(method, args, kwargs, context):
        calls.append((type(context.module).__name__, context.method_name))
        return method(*args, **kwargs)

    with nn.intercept_methods(counted):
        params = jaxgen.abstract(config)
        assert calls.count(("Block", "__call__")) == 1
        jax.eval_shape(lambda p: jaxgen.apply(p, config, [[1, 2]]).logits, params)
        assert calls.count(("Block", "__call__")) == 2


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


def test_attention_dropout_is_apart_from_dropout():
    params, tokens = make(BASE)

    def drawn(**rates):
        config = BASE.replace(**rates)
        return jaxgen.apply(params, config, tokens, key=jax.random.key(1)).logits

    still, both, scores = drawn(), drawn(dropout=0.5), drawn(attention_dropout=0.5)
    others = drawn(dropout=0.5, attention_dropout=0.0)
    assert (scores != still).any() and (others != still).any() and (others != both).any()
    assert (both == drawn(dropout=0.5, attention_dropout=0.5)).all()


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
    with pytest.raises(jaxgen.errors.ConfigError, match=r"'layer/out'.*match nothing"):
        jaxgen.apply(params, BASE, tokens, taps=("layer/out",))
    with pytest.raises(jaxgen.errors.ConfigError, match="memory="):
        jaxgen.apply(
            params, BASE, tokens, memory=Memory(jnp.zeros((2, 3, 16)), jnp.ones((2, 3), jnp.int32))
        )
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


def test_settings_that_are_in_a_group_now_are_taken_under_their_older_names():
    groups = ModelConfig(
        positions="rope",
        rope=jaxgen.Rope(theta=3.0),
        scores=jaxgen.Scores(cap=2.0, dropout=0.5),
        pattern=("local", "global"),
        window=4,
        kinds={"local": jaxgen.LayerKind(rope=jaxgen.Rope(theta=2.0))},
    )
    flat = {"rope_theta": 3.0, "score_cap": 2.0, "attention_dropout": 0.5, "rope_theta_local": 2.0}
    about = {"positions": "rope", "pattern": ("local", "global"), "window": 4}
    assert ModelConfig(**flat, **about) == groups
    assert {groups} == {ModelConfig(**about).replace(**flat)}
    assert settings.build(ModelConfig, {**about, **flat}) == groups
    assert {name: getattr(groups, name) for name in flat} == flat
    with pytest.raises(ConfigError, match=r"rope_theta and rope\.theta are one setting"):
        settings.build(ModelConfig, {"rope_theta": 2.0, "rope": {"theta": 2.0}})

"""Adapters beside weights: what they compute, what is trained of them, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_params import random_params

import jaxgen
from jaxgen import settings, tree
from jaxgen.adapters.adapter import (
    abstract,
    attach,
    axes,
    init,
    merge,
    plan,
)
from jaxgen.adapters.base import QUANTISED, check_base, fingerprint, quantise
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.adapters.sites import sites
from jaxgen.config_experts import Experts
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import serving
from jaxgen.nn import unroll

KINDS = ("lora", "rslora", "dora", "ia3")
CONFIG = jaxgen.ModelConfig(
    vocab_size=13, context=16, layers=3, d_model=8, heads=4, kv_heads=2, feed="swiglu",
    norm="rms", positions="rope", init_std=0.3,
)  # fmt: skip
TOKENS = jnp.asarray([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])


def wanted(kind, **more):
    if kind != "ia3":
        more = {"rank": 3, "alpha": 5.0} | more
    return settings.build(AdapterSettings, {"kind": kind, **more})


def drawn(adapter, config=CONFIG, seed=1):
    """The adapter with random numbers; those that its layers don't have are 0, as of `init`."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        values = 0.3 * rng.normal(size=shape.shape)
        home, _, part = path.rpartition("/")
        if part in ("a", "b"):
            on = np.arange(int(np.max(adapter.ranks[home]))) < adapter.ranks[home][..., None]
            values *= on[:, None, :] if values.ndim == 3 and part == "a" else 1
        return jnp.asarray(values + (part not in ("a", "b")), "float32")

    return replace(adapter, params=tree.map_paths(leaf, abstract(adapter, config)))


@jax.jit
def logits(params):
    return jaxgen.apply(params, CONFIG, TOKENS).logits


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_a_merged_one_computes_the_same(kind, params):
    adapter = plan(wanted(kind, bias="targets"), CONFIG)
    fresh = init(adapter, CONFIG, params, jax.random.key(0))
    shapes = tree.map_paths(lambda path, x: (x.shape, x.dtype), abstract(adapter, CONFIG))
    assert tree.map_paths(lambda path, x: (x.shape, x.dtype), fresh) == shapes
    letters = tree.map_paths(lambda path, x: len(x), axes(adapter, CONFIG))
    assert letters == tree.map_paths(lambda path, x: len(x[0]), shapes)
    plain = logits(params)
    begun = logits(attach(params, replace(adapter, params=fresh), CONFIG))
    np.testing.assert_allclose(begun, plain, atol=1e-5)
    tuned = attach(params, drawn(adapter), CONFIG)
    assert np.abs(logits(tuned) - plain).max() > 0.1
    np.testing.assert_allclose(logits(merge(tuned, CONFIG)), logits(tuned), atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_merged_weight_is_the_formula_of_the_paper(kind, params):
    adapter = drawn(plan(wanted(kind, targets=["layers/attn/o"]), CONFIG))
    merged = merge(attach(params, adapter, CONFIG), CONFIG)
    ours, weight = adapter.params["layers"]["attn"]["o"], params["layers"]["attn"]["o"]
    sum_ = weight + 5 / 3 * np.einsum("lnhr,lrd->lnhd", ours["a"], ours["b"])
    if kind == "dora":
        norm = np.sqrt((sum_**2).sum(axis=(1, 2), keepdims=True))
        sum_ = ours["magnitude"][:, None, None] * sum_ / norm
    np.testing.assert_allclose(merged["layers"]["attn"]["o"], sum_, atol=1e-5)
    assert merged["layers"]["attn"]["q"] is params["layers"]["attn"]["q"]


@pytest.mark.parametrize("weights", ["plain", "int8", "int4"])
def test_parameters_laid_out_for_decoding_keep_their_adapters(weights, params, monkeypatch):
    monkeypatch.setattr(unroll, "UNROLL_LIMITS", {"cpu": (0, 99)})
    first, second = (
        drawn(plan(wanted(kind), CONFIG), seed=s) for kind, s in (("lora", 1), ("dora", 2))
    )
    if weights == "int4":
        params = quantise(params, CONFIG, weights)
    tuned = attach(attach(params, first, CONFIG), second, CONFIG)
    laid = serving.ready(tuned, CONFIG, weights="int8" if weights == "int8" else "plain")
    assert serving.is_unrolled(laid)
    prompt, key = TOKENS[:, :2], jax.random.key(0)
    if weights == "int4":
        np.testing.assert_allclose(logits(laid), logits(tuned), atol=1e-5)
    elif weights == "plain":
        found = jaxgen.generate(laid, CONFIG, prompt, key, length=4)
        np.testing.assert_array_equal(found, jaxgen.generate(tuned, CONFIG, prompt, key, length=4))
        np.testing.assert_allclose(logits(laid), logits(tuned), atol=1e-5)
        np.testing.assert_allclose(logits(serving.stacked(laid)), logits(tuned), atol=1e-5)
    else:
        rounded = serving.join(*[serving._ready(params, CONFIG, "int8"), serving.split(tuned)[1]])
        np.testing.assert_allclose(logits(laid), logits(rounded), atol=1e-6)


@pytest.mark.parametrize("base", QUANTISED)
def test_gradients_over_a_quantised_base_are_those_over_the_same_base_widened(base, params):
    adapter = drawn(plan(wanted("dora" if base == "int8" else "lora"), CONFIG))
    small = quantise(params, CONFIG, base)
    wide = merge(small, CONFIG)
    assert wide["layers"]["attn"]["q"].dtype == jnp.float32
    batch = {"tokens": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}

    def loss(own, base):
        tuned = attach(base, replace(adapter, params=own), CONFIG)
        return jaxgen.causal_loss(tuned, CONFIG, batch).total

    taken = jax.jit(jax.grad(loss))
    one, other = (tree.flatten(taken(adapter.params, base)) for base in (small, wide))
    for path, leaf in one.items():
        assert np.abs(leaf).max() > 0, path
        np.testing.assert_allclose(leaf, other[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_a_base_of_four_bits_takes_half_of_one_of_eight():
    config = jaxgen.preset("llama-3.1-8b")
    params = jaxgen.abstract(config)
    eight, four = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(small["layers"]))
        for small in (
            jax.eval_shape(lambda params, base=base: quantise(params, config, base), params)
            for base in ("int8", "int4")
        )
    )
    assert 0.51 < four / eight < 0.53


def test_a_layer_without_an_adapter_stays_as_it_is_through_training(params):
    asked = wanted("lora", layers=[0, 2], rank_pattern={"*/q": 2}, targets=["*/q", "*/up"])
    adapter = plan(asked, CONFIG)
    assert adapter.ranks["layers/attn/q"].tolist() == [2, 0, 2]
    assert adapter.ranks["layers/feed/up"].tolist() == [3, 0, 3]
    assert adapter.scale("layers/attn/q").tolist() == [2.5, 0, 2.5]
    own = init(adapter, CONFIG, params, jax.random.key(0))
    batch, rule = {"tokens": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}, optax.adam(0.1)

    def loss(own, config, batch, key):
        return jaxgen.causal_loss(
            attach(params, replace(adapter, params=own), config), config, batch
        )

    step = jax.jit(
        lambda state, batch: jaxgen.train_step(
            state, batch, config=CONFIG, optimizer=rule, loss=loss
        )
    )
    state = jaxgen.train_state(own, rule, jax.random.key(1))
    for _ in range(3):
        state, metrics = step(state, batch)
    assert float(metrics["loss"]) < float(jaxgen.causal_loss(params, CONFIG, batch).nll.sum() / 10)
    for path, leaf in tree.flatten(state.params).items():
        used = np.abs(leaf).reshape(3, -1).sum(axis=1) > 0
        assert used.tolist() == [True, False, True], path


def test_no_gradient_of_the_base_is_computed():
    config = CONFIG.replace(layers=1, d_ff=64)
    params, adapter = random_params(config), plan(wanted("lora", rank=1, targets=["*/q"]), config)
    own = init(adapter, config, params, jax.random.key(0))
    batch = {"tokens": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}

    def beside(own, base):
        tuned = attach(base, replace(adapter, params=own), config)
        return jaxgen.causal_loss(tuned, config, batch).total

    def whole(base):
        return jaxgen.causal_loss(base, config, batch).total

    flops = [
        jax.jit(jax.grad(function)).lower(*args).compile().cost_analysis()["flops"]
        for function, args in ((beside, (own, params)), (whole, (params,)))
    ]
    # Of three products of a weight, the third is left out.
    assert flops[0] < 0.8 * flops[1], flops


def test_dropout_of_an_adapter_is_of_its_inputs_and_of_the_key(params):
    adapter = drawn(plan(wanted("lora", dropout=0.5, targets=["*/down"]), CONFIG))
    found = [
        logits(attach(params, adapter, CONFIG, key=key))
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    ]
    np.testing.assert_array_equal(found[1], found[2])
    assert np.abs(found[1] - found[3]).max() > 1e-3 and np.abs(found[0] - found[1]).max() > 1e-3
    zero = replace(adapter, params=jax.tree.map(jnp.zeros_like, adapter.params))
    np.testing.assert_array_equal(
        logits(attach(params, zero, CONFIG, key=jax.random.key(0))), logits(params)
    )


def test_a_base_is_known_by_its_numbers_in_any_type(params):
    adapter = replace(plan(wanted("lora"), CONFIG), digest=fingerprint(params), base="theirs")
    check_base(adapter, params, "mine")
    check_base(adapter, jax.tree.map(lambda x: x.astype("bfloat16"), params), "mine")
    check_base(adapter, quantise(params, CONFIG, "int8"), "mine")
    with pytest.raises(CheckpointError, match=r"mine is an adapter of another base \(theirs\): "):
        check_base(adapter, random_params(CONFIG, seed=5), "mine")


def test_all_linear_is_every_matrix_of_layers_and_no_expert():
    config = jaxgen.ModelConfig(
        vocab_size=13, context=16, layers=2, d_model=8, heads=2,
        experts=Experts(number=2, active=1, shared=8),
    )  # fmt: skip
    found = plan(wanted("lora"), config).targets
    assert all("experts/" not in path or "/shared/" in path for path in found)
    assert {"layers/attn/q", "layers/attn/o", "layers/experts/shared/up"} <= set(found)
    assert set(sites(config)) >= set(found)


# fmt: off
REFUSED = [
    ({"rank": 0}, "rank=0 must be at least 1"),
    ({"rank_pattern": {"*/q": 0}}, r"rank_pattern.*/q=0 must be at least 1"),
    ({"alpha": 0.0}, "alpha=0.0 must be greater than 0"),
    ({"targets": []}, r"targets=\[\] leaves nothing to train"),
    ({"targets": ["layers/attn/p"]}, "targets='layers/attn/p' matches .* paths look like 'layers/"),
    ({"targets": ["layers/attn_norm/scale"]}, "no matrix that an adapter stands beside"),
    ({"targets": ["embed/tokens"]}, r"to train it whole: adapter.save=\['embed/tokens'\]"),
    ({"layers": [3]}, "layers=3 is no layer of the targets; they have 0 to 2"),
    ({"layers": []}, "leave no weight"),
    ({"save": ["layers/attn/q"]}, "in adapter.targets and in adapter.save"),
    ({"save": ["nothing/*"]}, "save='nothing/.*' matches no parameter"),
    ({"rank_pattern": {"embed/*": 2}}, "rank_pattern='embed/.*' matches no parameter"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
]
# fmt: on


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(given, said):
    with pytest.raises(ConfigError, match=said):
        plan(wanted("lora", **given), CONFIG)


def test_settings_of_an_adapter_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="rank=4 has no effect with kind=none"):
        settings.build(AdapterSettings, {"rank": 4})
    assert settings.build(AdapterSettings, {}).kind == "none"

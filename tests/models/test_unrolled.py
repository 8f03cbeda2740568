"""Layers compiled one after another equal the scan over their stack."""

import os
import re
from functools import partial

import as_users
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.mesh import place
from jaxgen.models import api, serving
from jaxgen.nn.unroll import UNROLL_LIMITS, unroll
from jaxgen.ops.cpu.transposed_weight import TransposedWeight
from jaxgen.ops.int8 import Int8
from jaxgen.ops.unrolled import UnrolledLayers

SIZES = {"vocab_size": 32, "context": 16, "d_model": 8, "heads": 2}
CONFIGS = {
    "one kind": jaxgen.ModelConfig(layers=3, **SIZES),
    "two kinds, one layer left over": jaxgen.ModelConfig(
        layers=5, pattern=("local", "global"), window=4, **SIZES
    ),
    "gates, shared keys": jaxgen.ModelConfig(
        layers=2, feed="swiglu", biases="none", norm="rms", positions="rope", kv_heads=1, **SIZES
    ),
    "latents": jaxgen.ModelConfig(
        layers=2,
        positions="rope",
        latent=jaxgen.Latent(kv_rank=6, rope_width=2, plain_width=4, value_width=4),
        **SIZES,
    ),
    "states beside keys, one layer left over": jaxgen.ModelConfig(
        layers=5,
        pattern=("linear", "global"),
        kinds={"linear": jaxgen.LayerKind(mixer="delta")},
        delta=jaxgen.Delta(key_heads=1, value_heads=2, key_width=4, value_width=4),
        **SIZES,
    ),
    "with an encoder": jaxgen.ModelConfig(topology="encoder_decoder", layers=2, **SIZES),
}
TOKENS = np.arange(12).reshape(2, 6)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_in_line_equal_the_scan_in_logits_cache_and_taps(name):
    config = CONFIGS[name]
    params = random_params(config)
    memory = None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, TOKENS[:, :4])

    def read(params):
        slots = None if memory is None else 4
        cache = api.empty_cache(config, 2, 8, memory=slots)
        return jaxgen.apply(params, config, TOKENS, cache=cache, memory=memory, taps=("*",))

    found = jax.jit(read)(params | {"layers": unroll(params["layers"])})
    wanted = jax.jit(read)(params)
    assert wanted.taps and jax.tree.structure(found) == jax.tree.structure(wanted)
    for mine, scanned in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, scanned, atol=1e-6)


def test_a_stack_is_taken_apart_where_the_table_says_so(monkeypatch):
    config = CONFIGS["one kind"]
    params = random_params(config)
    assert serving.unroll(params, config) is params  # small: its copies cost nothing
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 2))
    assert serving.unroll(params, config) is params  # deeper than two layers
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 3))
    apart = serving.unroll(params, config)
    assert isinstance(apart["layers"], UnrolledLayers) and len(apart["layers"].steps) == 3
    whole = params["layers"]["attn"]["q"]
    wanted = np.array(whole[2])
    jax.jit(lambda x: 0 * x, donate_argnums=0)(whole)  # the stack may be given away
    np.testing.assert_array_equal(apart["layers"].steps[2]["attn"]["q"], wanted)
    assert serving.unroll(apart, config) is apart


# Each way of storing in each layout, and each with what an encoder leaves; the rest by night.
CACHES = [
    (name, {"layout": layout, "store": store})
    for name, layout, store in (
        ("one kind", "contiguous", "plain"),
        ("gates, shared keys", "contiguous", "int8"),
        ("two kinds, one layer left over", "contiguous", "plain"),
        ("two kinds, one layer left over", "ring", "int8"),
        ("with an encoder", "contiguous", "plain"),
        ("with an encoder", "contiguous", "int8"),
        *(
            [
                ("one kind", "contiguous", "int8"),
                ("gates, shared keys", "contiguous", "plain"),
                ("two kinds, one layer left over", "contiguous", "int8"),
                ("two kinds, one layer left over", "ring", "plain"),
            ]
            if "JAXGEN_NIGHTLY" in os.environ
            else []
        ),
    )
]


@pytest.mark.parametrize(("name", "about"), CACHES, ids=str)
def test_a_cache_in_line_holds_what_that_of_all_layers_does(name, about):
    config = CONFIGS[name]
    params, memory, slots = random_params(config), None, None
    if config.topology == "encoder_decoder":
        memory, slots = jaxgen.encode(params, config, TOKENS[:, :4]), 4
    params |= {"layers": unroll(params["layers"])}

    def read(unrolled):
        cache = api.empty_cache(config, 2, 8, memory=slots, unrolled=unrolled, **about)
        assert cache.is_unrolled is unrolled and cache.capacity == 8
        first = jaxgen.apply(params, config, TOKENS, cache=cache, memory=memory)
        out = jaxgen.apply(params, config, TOKENS[:, :1], cache=first.cache.take(jnp.array([1, 0])))
        return out.logits, out.cache

    (logits, unrolled), (wanted, stacked) = (
        jax.jit(read, static_argnums=0)(x) for x in (True, False)
    )
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    np.testing.assert_array_equal(unrolled.length, stacked.length)
    for part in ("full", "sliding", "cross"):
        mine, theirs = getattr(unrolled, part), getattr(stacked, part)
        assert (mine is None) == (theirs is None)
        for array in ("k", "v", "k_scale", "v_scale") if theirs is not None else ():
            if getattr(theirs, array, None) is not None:
                steps = getattr(mine, array).steps
                assert len(steps) == -(-config.layers // len(config.pattern))
                held, also = np.concatenate(steps), getattr(theirs, array)
                np.testing.assert_allclose(held, also, atol=1 if held.dtype == "int8" else 1e-6)


def test_generation_takes_the_stack_apart_before_its_loop(monkeypatch):
    config, key = CONFIGS["one kind"], jax.random.key(0)
    params = random_params(config)

    def run(params):
        return jaxgen.generate(params, config, jnp.asarray(TOKENS), key, length=4)

    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 3))
    loop = next(e for e in jax.make_jaxpr(run)(params).eqns if e.primitive.name == "while")
    bodies = [e.params for e in loop.params["body_jaxpr"].jaxpr.eqns]
    steps = [body["jaxpr"] for body in bodies if body.get("name") == "_step"]
    assert len(steps) == 3 and steps[0] is steps[1] is steps[2]  # traced once
    shapes = [x.aval.shape for x in loop.invars]
    assert params["layers"]["feed"]["up"].shape not in shapes
    assert shapes.count(params["layers"]["feed"]["up"].shape[1:]) >= 3


@pytest.mark.parametrize(
    "name", [n for n, config in CONFIGS.items() if config.latent is config.delta is None]
)
def test_parameters_made_ready_have_turned_matrices_and_the_same_logits(name, monkeypatch):
    config = CONFIGS[name]
    params = random_params(config)
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (10**9, 9))
    assert serving.ready(params, config) is params
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 9))
    found = serving.ready(params, config)
    assert serving.ready(found, config) is found
    is_turned = lambda leaf: isinstance(leaf, TransposedWeight)  # noqa: E731
    leaves = jax.tree.leaves(found["layers"], is_leaf=is_turned)
    turned, rest = filter(is_turned, leaves), [leaf for leaf in leaves if not is_turned(leaf)]
    shapes = {leaf.weight.shape for leaf in turned}
    gate = 2 if "gate" in params["layers"].get("feed", ()) else 1
    width, rows = config.F, (config.heads + 2 * config.K) * config.H
    cross = {(2, 4, 8)} if config.topology == "encoder_decoder" else set()  # NHD
    # NHD to DNH; q, k and v in one; DF, with its gate in one; FD.
    assert shapes == {(8, 2, 4), (rows, 8), (gate * width, 8), (8, width)} | cross
    assert rest and all(leaf.size <= 32 for leaf in rest)  # biases and scales
    back = serving.stacked(found)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(params)))
    memory = None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, TOKENS[:, :4])
    run = jax.jit(lambda params: jaxgen.apply(params, config, TOKENS, memory=memory).logits)
    np.testing.assert_allclose(run(found), run(params), atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("apart", [True, False])
def test_weights_are_cast_once_to_what_they_are_multiplied_in_and_nothing_else_is(
    name, apart, monkeypatch
):
    config = CONFIGS[name].replace(compute_dtype="bfloat16")
    params = random_params(config)
    if apart:
        monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 9))
    found = serving.ready(params, config)
    memory = None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, TOKENS[:, :4])
    run = jax.jit(lambda params: jaxgen.apply(params, config, TOKENS, memory=memory).logits)
    # The same unrolled, but cast step by step: not one bit differs.
    np.testing.assert_array_equal(run(found), run(serving.unroll(params, config)))
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(found["embed"])}
    assert kinds == {"bfloat16"} | ({"float32"} if "norm" in found["embed"] else set())
    large = [x for x in jax.tree.leaves(found["layers"]) if x.size > 40 * config.layers]
    assert large and all(leaf.dtype == "bfloat16" for leaf in large)
    again = serving.ready(found, config)
    assert jax.tree.structure(again) == jax.tree.structure(found)


def test_on_a_gpu_layers_come_apart_as_they_are_where_the_copy_finds_room(monkeypatch):
    config = CONFIGS["one kind"]
    params = random_params(config)
    monkeypatch.setattr(place, "platform", lambda: "gpu")
    monkeypatch.setitem(UNROLL_LIMITS, "gpu", (0, 9))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    for room, wanted in ((None, True), (4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(place, "memory", lambda room=room: room)
        found = serving.ready(params, config)
        assert serving.is_unrolled(found) == wanted
    monkeypatch.setattr(place, "memory", lambda: None)
    found = serving.ready(params, config)
    assert not any(isinstance(leaf, TransposedWeight) for leaf in jax.tree.leaves(
        found["layers"], is_leaf=lambda leaf: isinstance(leaf, TransposedWeight)))  # fmt: skip
    assert found["layers"].steps[1]["feed"]["up"].shape == (8, config.F)


@pytest.mark.parametrize("weights", ["plain", "int8"])
@pytest.mark.parametrize("rows", [1, 4])
def test_weights_of_one_input_are_one_product(weights, rows, monkeypatch):
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 9))
    config = CONFIGS["gates, shared keys"]
    found = serving.ready(random_params(config), config, weights=weights)
    cache, tokens = api.empty_cache(config, rows, 8, unrolled=True), jnp.zeros((rows, 1), jnp.int32)
    step = jax.jit(lambda params: api.hidden(params, config, tokens, cache=cache))
    program = as_users.compile(step.lower(found)).as_text()
    # For each layer: q, k and v; scores; values; o; up and gate; down.
    assert len(re.findall(r"= \S+ dot\(", program)) == 6 * config.layers
    assert not re.search(rf"= f32\[(1,)?{rows},1,8,4\]\S* (dynamic-)?slice\(", program)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("apart", [True, False])
def test_int8_weights_make_logits_near_those_of_float32(name, apart, monkeypatch):
    config = CONFIGS[name].replace(output="tied")
    params = random_params(config)
    if apart:
        monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 9))
    found = serving.ready(params, config, weights="int8")
    memory = None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, TOKENS[:, :4])
    run = jax.jit(lambda params: jaxgen.apply(params, config, TOKENS, memory=memory).logits)
    logits, plain = run(found), run(params)
    assert isinstance(found["embed"]["tokens"], Int8)
    assert 0 < np.abs(logits - plain).max() < 0.05 * np.std(plain)
    is_int8 = lambda leaf: isinstance(leaf, Int8)  # noqa: E731
    read = [found[part] for part in ("layers", "rest") if part in found]
    rest = [x for x in jax.tree.leaves(read, is_leaf=is_int8) if not is_int8(x)]
    both_ways = 2 * 4 * 6 if config.latent else 0  # NHZ, which a scale of either side does not fit
    most = max(32, both_ways) * config.layers
    assert all(leaf.dtype == "float32" and leaf.size <= most for leaf in rest)


def test_a_step_of_one_row_copies_no_cache(monkeypatch):
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 3))
    config = CONFIGS["one kind"]
    prompt = jnp.asarray(TOKENS[:1, :4])
    run = jax.jit(partial(jaxgen.generate, config=config, length=5))
    lowered = run.lower(random_params(config), prompt=prompt, key=jax.random.key(0))
    program = as_users.compile(lowered)
    blocks = [block for block in program.as_text().split("\n\n") if "ENTRY" not in block]
    loop = max(blocks, key=lambda block: block.count("f32[1,1,2,9,4]"))
    made = re.findall(r"= f32\[1,1,2,9,4\]\S* ([\w-]+)\(", loop)
    assert {"copy", "dynamic-update-slice"}.isdisjoint(made)
    assert len([one for one in made if one != "get-tuple-element"]) == 2 * config.layers, made

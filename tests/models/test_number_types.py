"""Models of every pair of dtypes, in every mode of JAX's numbers, and ids of every integer type."""

import itertools
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen

PAIRS = [*itertools.product(("float32", "bfloat16", "float16"), repeat=2)]
IDS = np.arange(24, dtype=np.int32).reshape(2, 12) % 32
SIZES = {"vocab_size": 32, "context": 16, "layers": 2, "d_model": 16, "heads": 2, "d_ff": 24}
LLAMA = {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none", "kv_heads": 1}
MODELS = {
    "gpt2": {"dropout": 0.1},
    "llama, untied": LLAMA | {"output": "untied"},
    "gemma": LLAMA | {"norm": "rms_offset", "norm_at": "both", "feed": "geglu", "qk_norm": "head",
        "embed_scale": "root", "score_cap": 50.0, "logit_cap": 30.0, "layers": 3,
        "pattern": ("local", "global"), "window": 4},
    "bert": {"topology": "encoder", "norm_at": "post", "token_types": 2, "head": "mlm",
        "output_bias": "bias"},
    "t5": {"topology": "encoder_decoder", "positions": "relative", "norm": "rms",
        "biases": "none", "output_scale": "root", "dropout": 0.1},
}  # fmt: skip
SOME = ["gpt2", "gemma", "bert", "t5"]
KEY = jax.random.key(1)
# All nine pairs in all of them take a minute more, so they are for the night. In a square
# each dtype stands once as stored and once as computed; both hold each pair of different dtypes.
SQUARES = (
    [("float32", "bfloat16"), ("bfloat16", "float16"), ("float16", "float32")],
    [("float32", "float16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)


def square(number):
    return PAIRS if "JAXGEN_NIGHTLY" in os.environ else SQUARES[number % 2]


def trained():
    """Yield (model, stored, computed, task): decoders have two tasks, and a square for each."""
    for number, (name, fields) in enumerate(MODELS.items()):
        if "topology" in fields:
            yield from ((name, *pair, "gradient") for pair in PAIRS)
        else:
            yield from ((name, *pair, "gradient") for pair in square(number))
            yield from ((name, *pair, "training step") for pair in square(number + 1))


def generated():
    for number, name in enumerate(name for name in MODELS if name != "bert"):
        yield from ((name, *pair) for pair in square(number))


def model(name, **dtypes):
    config = jaxgen.ModelConfig(**SIZES | MODELS[name] | dtypes)
    return config, jax.eval_shape(partial(jaxgen.init, config), jax.random.key(0))


def memory(config, params, key=None):
    if config.topology != "encoder_decoder":
        return {}
    return {"memory": jaxgen.encode(params, config, IDS, key=key)}


def logits(config, params, key=None):
    return jaxgen.apply(params, config, IDS, key=key, **memory(config, params, key)).logits


def generates(config):
    return config.topology != "encoder"


def tasks(config):
    """What users do with a model: functions of its parameters."""
    batch = {"tokens": IDS, "targets": IDS}
    optimizer = optax.sgd(1e-3, momentum=0.9)  # Adam of Optax promotes integers itself
    chain = jaxgen.chain(
        jaxgen.repetition_penalty(1.2),
        jaxgen.presence_penalty(0.5),
        jaxgen.no_repeat_ngram(2),
        jaxgen.temperature(0.7),
        jaxgen.top_k(9),
        jaxgen.top_p(0.9),
        jaxgen.typical(0.95),
        jaxgen.top_n_sigma(3.0),
        jaxgen.watermark(7),
    )

    def step(params):
        begun = jaxgen.train_state(params, optimizer, KEY)
        fixed = {"config": config, "optimizer": optimizer, "loss": jaxgen.causal_loss}
        return jaxgen.train_step(begun, batch, **fixed)[0].params

    yield "dropout", partial(logits, config, key=KEY)
    yield "gradient", jax.grad(lambda params: jnp.sum(logits(config, params) ** 2))
    if config.topology == "decoder":
        yield "training step", step
    if generates(config):

        def more(function, *args, width=3, **options):
            def generate(params):
                known = memory(config, params)
                return function(params, config, IDS[:, :width], *args, length=3, **known, **options)

            return generate

        yield "greedy", more(jaxgen.generate, KEY)
        yield "sampled", more(jaxgen.generate, KEY, sample=chain, store="int8")
        stops = {"stop": jnp.array([3, 4]), "lengths": jnp.array([3, 2])}
        yield "beams", more(jaxgen.generate_beams, jaxgen.beams(2), **stops)
        if config.topology == "decoder":
            yield "contrastive", more(jaxgen.generate_contrastive, count=3, penalty=0.5)
            yield "lookup", more(jaxgen.generate_lookup, KEY, count=2)


@pytest.mark.parametrize(("name", "stored", "computed", "task"), list(trained()))
def test_every_pair_of_dtypes_trains(name, stored, computed, task):
    config, params = model(name, param_dtype=stored, compute_dtype=computed)
    found = jax.eval_shape(dict(tasks(config))[task], params)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, params)


@pytest.mark.parametrize(("name", "stored", "computed"), list(generated()))
def test_every_pair_of_dtypes_generates(name, stored, computed):
    config, params = model(name, param_dtype=stored, compute_dtype=computed)
    assert jax.eval_shape(dict(tasks(config))["sampled"], params).dtype == jnp.int32


@pytest.mark.parametrize(("stored", "computed"), PAIRS[1:])
def test_every_pair_of_dtypes_is_near_float32(stored, computed):
    config, _ = model("llama, untied")
    params = jaxgen.init(config, jax.random.key(0))
    # Parts of two documents and padding, so that masks hide whole rows.
    segments = np.where(np.arange(12) < [[5], [12]], 1, 2) * (np.arange(12) < [[9], [12]])
    seen = np.asarray(segments > 0, np.float32)[..., None]

    def loss(params, config):
        out = jaxgen.apply(params, config, IDS, segments=segments).logits
        return jnp.sum(jax.nn.log_softmax(out)[..., :3] * seen)

    value, grads = jax.value_and_grad(loss)(params, config)
    other = config.replace(param_dtype=stored, compute_dtype=computed)
    cast = jax.tree.map(lambda x: x.astype(stored), params)
    found, found_grads = jax.value_and_grad(loss)(cast, other)
    np.testing.assert_allclose(found, value, rtol=0.01)
    for a, b in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        near = 0.06 * np.abs(b).max()
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=near)


@pytest.mark.parametrize("name", SOME)
def test_everything_traces_where_jax_promotes_nothing(name):
    config, params = model(name)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for _, function in tasks(config):
            jax.eval_shape(function, params)


def types(jaxpr):
    """Yield the types of all arrays of a program."""
    for equation in jaxpr.eqns:
        yield from ((equation, v.aval.dtype) for v in equation.outvars if hasattr(v.aval, "dtype"))
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                part = getattr(part, "jaxpr", part)
                yield from types(part) if hasattr(part, "eqns") else ()


@pytest.mark.parametrize("name", SOME)
def test_with_x64_nothing_is_computed_in_64_bit_floats(name):
    config, params = model(name)
    with jax.enable_x64(True):
        for task, function in tasks(config):
            program = jax.make_jaxpr(function)(params)
            wide = [line for line, dtype in types(program.jaxpr) if dtype == jnp.float64]
            assert not wide, f"{task}: {wide[0]} {wide[0].source_info.traceback}"


def test_with_x64_numbers_and_draws_are_those_without():
    config, _ = model("gpt2")
    params = jaxgen.init(config, jax.random.key(0))
    chosen = ("dropout", "gradient", "sampled")
    for task, function in tasks(config):
        if task in chosen:
            wanted = jax.jit(function)(params)
            with jax.enable_x64(True):
                found = jax.jit(function)(params)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


INTEGERS = ("uint8", "int16", "uint32", "int64")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_ids_of_every_integer_type_are_the_same_ids(dtype):
    config, params = model("gpt2")
    prompt, options = IDS[:, :3].astype(dtype), {"length": 2}
    with jax.enable_x64("64" in dtype):
        for generate in (
            lambda p: jaxgen.generate(p, config, prompt, KEY, **options),
            lambda p: jaxgen.generate_beams(p, config, prompt, jaxgen.beams(2), **options).tokens,
            lambda p: jaxgen.generate_lookup(p, config, prompt, KEY, count=2, **options).tokens,
            lambda p: (
                jaxgen.generate_contrastive(
                    p, config, prompt, count=3, penalty=0.5, **options
                ).tokens
            ),
        ):
            assert jax.eval_shape(generate, params).dtype == jnp.int32


@pytest.mark.parametrize("dtype", INTEGERS)
def test_decoding_starts_from_ids_of_every_integer_type(dtype):
    first = np.asarray([3, 9], dtype)
    with jax.enable_x64("64" in dtype):
        count = jaxgen.decode(
            lambda x, cache: (jax.nn.one_hot((x + 1) % 16, 16, dtype=jnp.float32), cache),
            jnp.zeros(()),
            jnp.asarray(first),
            KEY,
            jaxgen.greedy(),
            3,
        )[0]
    np.testing.assert_array_equal(count, [[4, 5, 6], [10, 11, 12]])


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_unsigned_positions_hide_what_is_ahead(dtype):
    config, _ = model("gpt2")
    params = jaxgen.init(config, jax.random.key(0))
    positions = jnp.broadcast_to(jnp.arange(12), IDS.shape)
    wanted = jaxgen.apply(params, config, IDS, positions=positions).logits
    found = jaxgen.apply(params, config, IDS, positions=positions.astype(dtype)).logits
    np.testing.assert_array_equal(found, wanted)

"""The switch of the forms for XLA:CPU: every program obeys it, and no other platform has one."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from random_params import random_params

import jaxgen
from jaxgen.models import serving
from jaxgen.nn.unroll import UNROLL_LIMITS
from jaxgen.ops import cpu
from jaxgen.train import state

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=31, layers=2, d_model=16, heads=2, dropout=0.1, attention_dropout=0.1
)
PARAMS = random_params(CONFIG)
OPTIMIZER = optax.sgd(0.1)
ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="forms for CPUs")


def train(config, begun):
    tokens = jnp.zeros((2, 31), jnp.int32)
    words = {"config": config, "optimizer": OPTIMIZER, "loss": jaxgen.causal_loss}
    return jaxgen.train_step(begun, {"tokens": tokens, "targets": tokens}, **words)


def draw(config, params, *, count):
    sample = jaxgen.chain(jaxgen.temperature(0.8), jaxgen.top_p(0.9))
    prompt = jnp.zeros((count, 3), jnp.int32)
    return jaxgen.generate(params, config, prompt, jax.random.key(0), length=4, sample=sample)


def programs(params):
    """Return (function, argument) of training steps and of decoding, by name.

    Lengths are odd: cuDNN's attention, which takes even ones, can only be traced where cuDNN is.
    """
    begun = state.train_state(PARAMS, OPTIMIZER, jax.random.key(1))
    half = CONFIG.replace(compute_dtype="bfloat16")
    return {
        "train float32": (partial(train, CONFIG), begun),
        "train bfloat16": (partial(train, half), begun),
        "decode 3 float32": (partial(draw, CONFIG, count=3), params),
        "decode 1 bfloat16": (partial(draw, half, count=1), params),
    }


def jaxpr(function, argument) -> str:
    # A new function, or JAX would return what it has traced before.
    text = str(jax.make_jaxpr(lambda argument: function(argument))(argument))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def other(platform: str):
    device = AbstractDevice(device_kind="another", num_cores=None, platform=platform)
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.fixture
def unrolled(monkeypatch):
    """Parameters as they lie on a CPU that decodes, small as they are."""
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 9))
    return serving.ready(PARAMS, CONFIG)


@ON_CPU
@pytest.mark.parametrize("name", programs(None))
def test_on_a_cpu_the_switch_changes_a_program_and_elsewhere_nothing(name, unrolled):
    function, argument = programs(PARAMS)[name]
    with cpu.disabled():
        plain = jaxpr(function, argument)
    assert jaxpr(function, argument) != plain
    for platform in ("gpu", "tpu"):
        with other(platform):
            fast = jaxpr(function, argument)
            with cpu.disabled():
                assert jaxpr(function, argument) == fast


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_parameters_lie_as_they_are_on_other_platforms(platform, monkeypatch):
    monkeypatch.setitem(UNROLL_LIMITS, platform, (0, 9))
    monkeypatch.setattr(serving.place, "memory", lambda: None)
    with other(platform):
        ready = serving.ready(PARAMS, CONFIG)
        with cpu.disabled():
            plain = serving.ready(PARAMS, CONFIG)
    assert jax.tree.structure(ready) == jax.tree.structure(plain)


@ON_CPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_in_memory_is_laid_out_as_a_program_would(dtype, monkeypatch):
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 9))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    ready = serving.ready(params, CONFIG)
    monkeypatch.setattr(serving.place, "is_here", lambda array: False)
    jax.tree.map(np.testing.assert_array_equal, ready, serving.ready(params, CONFIG))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(ready))


@ON_CPU
def test_a_compiled_program_is_not_used_where_the_switch_stands_otherwise():
    def form(x):
        return x + jnp.float32(cpu.enabled("argmax"))

    forms = {
        "jit": jax.jit(form),
        "jit in jit": jax.jit(jax.jit(form)),
        "gradient": jax.jit(lambda x: jax.value_and_grad(form)(x)[0]),
        "scan": jax.jit(lambda x: jax.lax.scan(lambda y, _: (form(y), None), x, None, 1)[0]),
    }
    for _ in range(2):
        for name, program in forms.items():
            assert program(0.0) == 1, name
            with cpu.disabled("argmax"):
                assert program(0.0) == 0, name
            with cpu.disabled():
                assert program(0.0) == 0, name
            with cpu.disabled("threefry"):
                assert program(0.0) == 1, name


@ON_CPU
def test_tokens_and_losses_are_those_of_the_plain_forms(unrolled):
    begun = state.train_state(PARAMS, OPTIMIZER, jax.random.key(1))

    def results(params):
        loss = jax.jit(partial(train, CONFIG))(begun)[1]["loss"]
        return jax.jit(partial(draw, CONFIG, count=3))(params), loss

    tokens, loss = results(unrolled)
    with cpu.disabled():
        wanted, plain = results(PARAMS)
    np.testing.assert_array_equal(tokens, wanted)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)


def test_contexts_add_up_and_names_are_checked():
    with cpu.disabled("argmax"), cpu.disabled("threefry"):
        assert not cpu.enabled("argmax", "cpu") and not cpu.enabled("threefry", "cpu")
        assert cpu.enabled("few_rows", "cpu") and not cpu.enabled("few_rows", "gpu")
    assert cpu.enabled("argmax", "cpu")
    with pytest.raises(KeyError, match="argmin"):
        cpu.disabled("argmin")


def test_every_form_is_in_some_program():
    """A name that no code asks for would be a switch of nothing."""
    text = "".join(p.read_text() for p in Path(jaxgen.__file__).parent.rglob("*.py"))
    asked = set(re.findall(r'enabled\("(\w+)"', text))
    assert asked == set(cpu.TWINS)

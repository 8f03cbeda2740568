"""Compiler options reach the program, except those that the compiler does not know."""

import as_users
import jax
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen.ops import cpu
from jaxgen.ops.cpu import compile_options
from jaxgen.run.settings import Settings
from jaxgen.run.step import step_of
from jaxgen.train import partitioner, state

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="options of CPUs")


@pytest.fixture
def options_with(monkeypatch):
    """Set the options of CPUs."""

    def ask(**wanted):
        monkeypatch.setattr(compile_options, "OPTIONS", wanted)
        return compile_options.for_platform("cpu")

    return ask


def test_an_option_that_xla_does_not_know_is_left_out(options_with):
    assert options_with(xla_cpu_enable_fast_math=False, xla_of_next_year=True) == {
        "xla_cpu_enable_fast_math": False
    }


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_another_platform_gets_nothing(options_with, platform):
    options_with(xla_cpu_enable_fast_math=False)
    assert compile_options.for_platform(platform) == {}
    with cpu.disabled("compile_options"):
        assert compile_options.for_platform("cpu") == {}


def test_a_training_step_copies_less_with_them(options_with):
    def copies():
        config = jaxgen.ModelConfig(vocab_size=64, context=16, layers=2, d_model=16, heads=2)
        settings = Settings(model=config)
        optimizer = optax.adamw(1e-3)
        params = jaxgen.init(config, jax.random.key(0))
        begun = state.train_state(params, optimizer, jax.random.key(1))
        step = partitioner.make_step("jit", step_of(settings, optimizer), None, None, 2)
        tokens = np.zeros((2, 16), np.int32)
        program = as_users.compile(step.lower(begun, {"tokens": tokens, "targets": tokens}))
        return program.as_text().count(" copy(")

    wanted = compile_options.OPTIONS
    assert options_with(**wanted) == wanted
    fewer = copies()
    assert options_with() == {}
    assert fewer < copies()


def test_every_form_asks_but_pmap_which_cannot(options_with):
    wanted = options_with(xla_cpu_enable_fast_math=False)
    mesh = jax.make_mesh((1,), ("data",))
    assert (
        partitioner.compile_options_for("pmap", None)
        == partitioner.compile_options_for("jit", mesh)
        == wanted
    )
    assert partitioner.compile_options_for("shard_map", mesh) == wanted
    assert partitioner.compile_options_for("pmap", mesh) == {}

"""What the compiler is asked for reaches the program, and only where it knows the option."""

import as_users
import jax
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen.run.settings import Settings
from jaxgen.run.step import step_of
from jaxgen.train import forms, options, state


@pytest.fixture
def asked(monkeypatch):
    """Set the options of this platform."""
    platform = jax.default_backend()

    def ask(**wanted):
        monkeypatch.setattr(options, "OPTIONS", {platform: wanted, "elsewhere": wanted})
        options.options.cache_clear()
        return options.options(platform)

    yield ask
    options.options.cache_clear()


def test_an_option_that_xla_does_not_know_is_left_out(asked):
    assert asked(xla_cpu_enable_fast_math=False, xla_of_next_year=True) == {
        "xla_cpu_enable_fast_math": False
    }


def test_a_platform_that_is_not_here_gets_nothing(asked):
    asked(xla_cpu_enable_fast_math=False)
    assert options.options("elsewhere") == {}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts what a CPU's program copies")
def test_a_training_step_copies_less_with_them(asked):
    def copies():
        config = jaxgen.ModelConfig(vocab_size=64, context=16, layers=2, d_model=16, heads=2)
        settings = Settings(model=config)
        optimizer = optax.adamw(1e-3)
        params = jaxgen.init(config, jax.random.key(0))
        begun = state.train_state(params, optimizer, jax.random.key(1))
        step = forms.make("jit", step_of(settings, optimizer), None, None, 2)
        tokens = np.zeros((2, 16), np.int32)
        program = as_users.compile(step.lower(begun, {"tokens": tokens, "targets": tokens}))
        return program.as_text().count(" copy(")

    wanted = options.OPTIONS["cpu"]
    assert asked(**wanted) == wanted
    fewer = copies()
    assert asked() == {}
    assert fewer < copies()


def test_every_form_asks_but_pmap_which_cannot(asked):
    wanted = asked(xla_cpu_enable_fast_math=False)
    mesh = jax.make_mesh((1,), ("data",))
    assert forms.asked("pmap", None) == forms.asked("jit", mesh) == wanted
    assert forms.asked("shard_map", mesh) == wanted
    assert forms.asked("pmap", mesh) == {}

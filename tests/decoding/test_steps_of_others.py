"""A step, a processor or a cache that does not do what decoding needs is one line that names it."""

import jax
import jax.numpy as jnp
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError

CONFIG = jaxgen.ModelConfig(vocab_size=11, context=16, layers=2, d_model=8, heads=2)
FIRST, KEY = jnp.array([1, 2]), jax.random.key(0)


def count(tokens, cache):
    return jax.nn.one_hot(tokens + 1, 5), cache


STEPS = {
    "no tuple": (lambda t, c: jax.nn.one_hot(t, 5), (), "step returned a"),
    "one row of logits": (lambda t, c: (jnp.zeros(5), c), (), "they must be [B, V] for B="),
    "another dtype": (
        lambda t, c: (count(t, c)[0], c + 1.0), jnp.zeros(2, jnp.int32),
        "of a leaf of its cache that was int32[",
    ),
    "another tree": (lambda t, c: (count(t, c)[0], (c, c)), jnp.zeros(2), "tree structure"),
}  # fmt: skip


@pytest.mark.parametrize("how", ["decode", "beams"])
@pytest.mark.parametrize(("step", "cache", "part"), STEPS.values(), ids=STEPS)
def test_a_step_that_returns_something_else_is_named(step, cache, part, how):
    with pytest.raises(ConfigError) as error:
        if how == "decode":
            jaxgen.decode(step, cache, FIRST, KEY, jaxgen.greedy(), 3)
        else:
            jaxgen.beam_search(step, cache, FIRST, KEY, jaxgen.chain(), 3, jaxgen.beams(2))
    assert part in str(error.value) and "\n" not in str(error.value)


def wider(logits):
    return jnp.pad(logits, ((0, 0), (0, 9)), constant_values=99.0)


@pytest.mark.parametrize("processor", [wider, lambda x: x[:, :3], lambda x: x.argmax(-1)])
def test_a_processor_that_changes_the_vocabulary_is_named(processor):
    with pytest.raises(ConfigError, match="the logits processor"):
        jaxgen.decode(count, (), FIRST, KEY, jaxgen.chain(processor), 3)


OTHERS = {
    "layers": {"layers": 1}, "key/value heads": {"heads": 4, "d_model": 16},
    "numbers a head": {"d_model": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("jitted", [True, False])
def test_a_cache_of_another_config_or_of_other_rows_is_refused(name, jitted):
    params, tokens = random_params(CONFIG), jnp.ones((2, 3), jnp.int32)
    apply = jax.jit(jaxgen.apply, static_argnums=1) if jitted else jaxgen.apply
    cache = jaxgen.empty_cache(CONFIG.replace(**OTHERS[name]), 2, 8)
    with pytest.raises(ConfigError, match=f"the cache is for . {name}"):
        apply(params, CONFIG, tokens, cache=cache)
    with pytest.raises(ConfigError, match="the cache is for 3 rows, but there are 2"):
        apply(params, CONFIG, tokens, cache=jaxgen.empty_cache(CONFIG, 3, 8))


def test_new_tokens_that_a_cache_has_no_slots_for_are_refused():
    params = random_params(CONFIG)
    first, cache = jaxgen.prefill(params, CONFIG, [[1, 2, 3], [4, 5, 0]], jnp.array([3, 2]), 6)
    step = jaxgen.model_step(params, CONFIG)
    given = (step, cache, first, KEY, jaxgen.greedy())
    assert jaxgen.decode(*given, 4)[0].shape == (2, 4)
    with pytest.raises(ConfigError, match="6 slots, of which 2 are used: 5 new tokens"):
        jaxgen.decode(*given, 5)
    assert jaxgen.decode(*given, 5, limit=4)[0].shape == (2, 5)

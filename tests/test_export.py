"""Programs for elsewhere: any batch, any length, several platforms, written down and read again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.train import state

PLATFORMS = ("cpu", "cuda", "tpu")
CONFIG = jaxgen.ModelConfig(
    vocab_size=17, context=16, layers=2, d_model=8, heads=2, norm="rms", positions="rope",
    feed="swiglu", biases="none",
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 9)).astype(np.int32)
SAMPLE = jaxgen.chain(
    jaxgen.repetition_penalty(1.2), jaxgen.temperature(0.7), jaxgen.top_k(9), jaxgen.top_p(0.9)
)


@pytest.fixture(scope="module")
def params():
    return jaxgen.init(CONFIG, jax.random.key(0))


def symbolic(tree, constraints=()):
    """The shapes of a tree whose arrays [3, 9] have any number of rows and tokens."""
    shape = export.symbolic_shape("b, t", constraints=constraints)

    def one(x):
        return jax.ShapeDtypeStruct(shape if np.shape(x) == (3, 9) else np.shape(x), x.dtype)

    return jax.tree.map(one, tree)


def check(function, *args, constraints=(), rtol=1e-4):
    """A program that is exported, written and read does what it does here."""
    function = jax.jit(function)
    made = export.export(function, platforms=PLATFORMS)(*symbolic(args, constraints))
    assert made.platforms == PLATFORMS
    found, wanted = export.deserialize(made.serialize()).call(*args), function(*args)

    def same(x, y):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(*np.float32((x, y)), rtol=rtol, atol=rtol / 10)

    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(same, found, wanted)


DECODERS = {
    "rope": CONFIG,
    "bfloat16": CONFIG.replace(compute_dtype="bfloat16"),
    "relative": CONFIG.replace(positions="relative"),
    "window": CONFIG.replace(window=4, pattern=("local", "global")),
}


@pytest.mark.parametrize("name", DECODERS)
def test_logits_and_gradients_of_any_batch_and_length(name):
    config = DECODERS[name]
    params, batch = jaxgen.init(config, jax.random.key(0)), {"tokens": TOKENS, "targets": TOKENS}
    rtol = 3e-2 if name == "bfloat16" else 1e-4
    check(lambda p, t: jaxgen.apply(p, config, t), params, TOKENS, rtol=rtol)
    if name in ("rope", "bfloat16"):
        check(
            jax.grad(lambda p, b: jaxgen.causal_loss(p, config, b).total), params, batch, rtol=rtol
        )


def test_texts_of_any_prompts_greedy_and_sampled(params):
    key = jax.random.key_data(jax.random.key(3))

    def sampled(params, prompt, key, sample):
        key = jax.random.wrap_key_data(key)
        return jaxgen.generate(params, CONFIG, prompt, key, length=4, sample=sample)

    check(partial(sampled, sample=None), params, TOKENS, key)
    check(sampled, params, TOKENS, key, jax.tree.map(np.asarray, SAMPLE))


def test_a_training_step_whose_state_goes_in_and_out(params):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.1))
    begun = state.train_state(params, tx, jax.random.PRNGKey(0))
    step = partial(jaxgen.train_step, config=CONFIG, optimizer=tx, loss=jaxgen.causal_loss)
    check(step, begun, {"tokens": TOKENS, "targets": TOKENS})


@pytest.mark.parametrize("about", [{}, {"store": "int8"}, {"layout": "ring"}], ids=str)
def test_a_cache_goes_in_and_out(about):
    config = DECODERS["window"]
    params, cache = jaxgen.init(config, jax.random.key(0)), api.empty_cache(config, 3, 12, **about)

    def step(params, tokens, cache):
        return jaxgen.apply(params, config, tokens, cache=cache)

    made = export.export(jax.jit(step))(params, TOKENS[:, :4], cache)
    found = export.deserialize(made.serialize()).call(params, TOKENS[:, :4], cache)
    assert (found.cache.length == 4).all() and found.logits.shape == (3, 4, 17)


def test_learned_positions_ask_for_a_length_that_fits():
    config = CONFIG.replace(positions="learned")
    params = jaxgen.init(config, jax.random.key(0))

    def logits(params, tokens):
        return jaxgen.apply(params, config, tokens).logits

    with pytest.raises(ConfigError, match=r"t tokens may not fit .*constraints=\['t <= 16'\]"):
        check(logits, params, TOKENS)
    check(logits, params, TOKENS, constraints=["t <= 16"])


def test_a_length_that_never_fits_is_refused(params):
    with pytest.raises(ConfigError, match="exceed context=16"):
        check(
            lambda p, t: jaxgen.generate(p, CONFIG, t, jax.random.key(0), length=4),
            *(params, TOKENS),
            constraints=["t >= 20"],
        )

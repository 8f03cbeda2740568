"""Public functions called without jit: one program a shape, none that says what is no longer so."""

import gc
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen.decoding.combined_steps import fused
from jaxgen.train import state

CONFIG = jaxgen.ModelConfig(vocab_size=17, context=16, layers=2, d_model=8, heads=2)
KEY = jax.random.key(0)
PROMPT = np.arange(5)[None]
BATCH = {"tokens": PROMPT[:, :-1], "targets": PROMPT[:, 1:]}
FIRST, ZERO = jnp.array([2]), jnp.zeros(1, jnp.int32)
OPTIMIZER = optax.sgd(0.1)


@pytest.fixture(scope="module")
def params():
    return jaxgen.init(CONFIG, KEY)


def count(tokens, cache):
    return jax.nn.one_hot((tokens + 1) % 7, 7) * 5.0, cache + 1


def decoded(step, cache):
    return jaxgen.decode(step, cache, FIRST, KEY, jaxgen.chain(jaxgen.temperature(0.5)), 3)


def speculated():
    draft = jaxgen.draft_model(count, ZERO, jaxgen.chain(), 2)
    read, prompt = jaxgen.multi_token_step(count), FIRST[:, None]
    return jaxgen.speculate(read, ZERO, FIRST, KEY, jaxgen.greedy(), 3, draft, prompt=prompt)


CALLS = {
    "init": lambda p: jaxgen.init(CONFIG, KEY),
    "apply": lambda p: jaxgen.apply(p, CONFIG, PROMPT, taps=("hidden",)),
    "loss": lambda p: jaxgen.causal_loss(p, CONFIG, BATCH),
    "gradient": lambda p: jax.grad(lambda p: jaxgen.causal_loss(p, CONFIG, BATCH).total)(p),
    "step": lambda p: (
        jaxgen.train_step(
            state.train_state(p, OPTIMIZER, KEY),
            BATCH,
            config=CONFIG,
            optimizer=OPTIMIZER,
            loss=jaxgen.causal_loss,
        )[0].params
    ),
    "generate": lambda p: jaxgen.generate(
        p, CONFIG, PROMPT, KEY, length=3, sample=jaxgen.chain(jaxgen.repetition_penalty(1.5))
    ),
    "beams": lambda p: jaxgen.generate_beams(p, CONFIG, PROMPT, jaxgen.beams(2), length=3),
    "draft": lambda p: jaxgen.generate_speculative(
        p, CONFIG, p, CONFIG, PROMPT, KEY, length=3, count=2
    ),
    "lookup": lambda p: jaxgen.generate_lookup(p, CONFIG, PROMPT, KEY, length=3, count=2),
    "contrastive": lambda p: jaxgen.generate_contrastive(
        p, CONFIG, PROMPT, length=3, count=2, penalty=0.5
    ),
    "dola": lambda p: jaxgen.generate_dola(p, CONFIG, PROMPT, KEY, length=3, layers="low"),
    "decode": lambda p: decoded(count, ZERO),
    "detail": lambda p: jaxgen.decode_detailed(count, ZERO, FIRST, KEY, jaxgen.greedy(), 3, top=2),
    "beam search": lambda p: jaxgen.beam_search(
        count, ZERO, FIRST, None, jaxgen.chain(), 3, jaxgen.beams(2)
    ),
    "speculate": lambda p: speculated(),
    "guided": lambda p: decoded(jaxgen.classifier_free_guidance(count, count, 1.5), (ZERO, ZERO)),
    "fused": lambda p: decoded(fused(count, count, 0.5), (ZERO, ZERO)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_like_an_earlier_one_compiles_nothing(name, params, compiled):
    first = CALLS[name](params)
    compiled.clear()
    again = CALLS[name](params)
    assert not compiled
    jax.tree.map(np.testing.assert_array_equal, again, first)


def test_nothing_is_compiled_where_jit_is_disabled(params):
    logits = jaxgen.apply(params, CONFIG, PROMPT[:, :2]).logits
    with jax.disable_jit():
        plain = jaxgen.apply(params, CONFIG, PROMPT[:, :2]).logits
    np.testing.assert_allclose(plain, logits, atol=1e-5)


def test_encoders_are_compiled_once_as_well(compiled):
    config = CONFIG.replace(topology="encoder")
    params = jaxgen.init(config, KEY)
    jaxgen.encode(params, config, PROMPT)
    compiled.clear()
    jaxgen.encode(params, config, PROMPT)
    assert not compiled


def test_other_values_run_the_same_program_and_count(params, compiled):
    def drawn(seed, value):
        sample, key = jaxgen.chain(jaxgen.temperature(value)), jax.random.key(seed)
        return jaxgen.generate(params, CONFIG, PROMPT, key, length=8, sample=sample).tolist()

    greedy, logits = drawn(0, 0.0), jaxgen.apply(params, CONFIG, PROMPT).logits
    compiled.clear()
    assert drawn(1, 0.0) == greedy
    assert drawn(1, 50.0) != drawn(2, 50.0)
    assert jnp.any(jaxgen.apply(params, CONFIG, PROMPT + 3).logits != logits)
    assert "run" not in " ".join(compiled)


SHIFT = 1


class Holder:
    """A step with a state of its own."""

    def __init__(self, shift):
        self.shift = shift

    def step(self, tokens, cache):
        return jax.nn.one_hot((tokens + self.shift) % 7, 7) * 99.0, cache


def test_variables_that_a_step_reads_are_read_again_when_they_change(monkeypatch):
    held, array, shift = Holder(1), np.array([1]), jnp.array(1)

    def by_cell(tokens, cache):
        return jax.nn.one_hot((tokens + shift) % 7, 7) * 99.0, cache

    def by_global(tokens, cache):
        return jax.nn.one_hot((tokens + SHIFT) % 7, 7) * 99.0, cache

    def by_helper(tokens, cache):
        return by_cell(tokens, cache)

    def by_array(tokens, cache):
        return jax.nn.one_hot((tokens + array) % 7, 7) * 99.0, cache

    steps = [by_cell, by_global, by_helper, by_array, held.step]
    ones = [decoded(step, ())[0].tolist() for step in steps]
    assert ones == [[[3, 4, 5]]] * 5
    shift, held.shift, array[0] = jnp.array(2), 2, 2
    monkeypatch.setitem(globals(), "SHIFT", 2)
    assert [decoded(step, ())[0].tolist() for step in steps] == [[[4, 6, 1]]] * 5


def test_what_a_step_closes_over_is_freed_with_it():
    table = jnp.eye(7)

    def step(tokens, cache):
        return table[(tokens + 1) % 7], cache

    decoded(step, ())
    gone = weakref.ref(table)
    del table, step
    gc.collect()
    assert gone() is None


def test_settings_of_the_call_are_told_apart(params):
    losses = [jaxgen.causal_loss(params, CONFIG, BATCH, smoothing=x).total for x in (0.0, 0.5, 0.0)]
    assert losses[0] == losses[2] != losses[1]


def test_vmap_grad_and_checkpoint_take_them_as_they_are(params):
    def loss(p):
        return jaxgen.causal_loss(p, CONFIG, BATCH).total

    plain = jax.grad(loss)(params)
    again = jax.jit(jax.grad(jax.checkpoint(loss)))(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), again, plain)
    seeds = jax.vmap(lambda key: jaxgen.init(CONFIG, key))(jax.random.split(KEY, 2))
    losses = jax.vmap(loss)(seeds)
    assert losses.shape == (2,) and losses[0] != losses[1]
    prompts = jnp.stack([jnp.asarray(PROMPT)] * 2)
    many = jax.vmap(lambda t: jaxgen.generate(params, CONFIG, t, KEY, length=2))(prompts)
    assert (many == jaxgen.generate(params, CONFIG, PROMPT, KEY, length=2)).all()


EXIT = """
import jax.numpy as jnp
from jaxgen.eager import compile_once

class Size:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return self.n == other.n
    def __hash__(self): return compute(self.n)

def compute(n): return n

@compile_once
def apply(size, step, x): return step(x) * size.n

def double(x): return 2 * x

print(float(apply(Size(3), double, jnp.ones(()))))
"""


def test_an_interpreter_that_ends_says_nothing():
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("6.0\n", "")

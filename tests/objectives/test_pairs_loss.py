"""The loss of an encoder-decoder on packed pairs: each pair counts as it would alone."""

from functools import partial

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.train.accumulate import gradients
from jaxgen.train.losses import causal_loss

CONFIG = jaxgen.ModelConfig(
    topology="encoder_decoder", vocab_size=29, context=16, layers=1, d_model=16, heads=2,
    init_std=0.3, positions="sinusoid",
)  # fmt: skip
PAIRS = [([5, 6, 7], [8, 9]), ([10, 11], [12, 13, 14, 15]), ([16] * 6, [17]), ([18], [19, 20])]


def rows(groups, size=16):
    """Lay the pairs of each group side by side in a row."""
    names = ("source", "source_segments", "source_positions", "tokens", "targets", "segments",
             "positions")  # fmt: skip
    batch = {name: np.zeros((len(groups), size), "i4") for name in names}
    for row, group in enumerate(groups):
        s = t = 0
        for number, (source, target) in enumerate(group, 1):
            inside = slice(s, s + len(source))
            batch["source"][row, inside] = source
            batch["source_segments"][row, inside] = number
            batch["source_positions"][row, inside] = range(len(source))
            inside = slice(t, t + len(target))
            batch["tokens"][row, inside] = [1, *target[:-1]]
            batch["targets"][row, inside] = target
            batch["segments"][row, inside] = number
            batch["positions"][row, inside] = range(len(target))
            s, t = s + len(source), t + len(target)
    return batch | {"weights": (batch["segments"] > 0).astype("f4")}


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))


@partial(jax.jit, static_argnames="accumulate")
def found(params, batch, accumulate=1):
    return gradients(causal_loss, params, CONFIG, batch, jax.random.key(0), accumulate=accumulate)


def same(left, right):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), left, right)


def test_packed_pairs_have_the_loss_and_gradient_of_each_alone(params):
    packed, packed_grads = found(params, rows([PAIRS[:3], PAIRS[3:]]))
    alone, alone_grads = found(params, rows([[pair] for pair in PAIRS]))
    assert float(packed.total) == pytest.approx(float(alone.total), rel=1e-5)
    assert float(packed.weight) == float(alone.weight) == sum(len(t) for _, t in PAIRS)
    np.testing.assert_allclose(packed.nll[0], alone.nll[:3].sum(), rtol=1e-5)
    same(packed_grads, alone_grads)


def test_accumulation_of_pairs_weighs_tokens_not_rows(params):
    batch = rows([PAIRS[:3], PAIRS[3:]])
    whole, parts = (found(params, batch, accumulate=n) for n in (1, 2))
    np.testing.assert_allclose(whole[0].nll, parts[0].nll, rtol=1e-5)
    same(whole[1], parts[1])


@jax.jit
def log_probs(params, source, tokens):
    memory = jaxgen.encode(params, CONFIG, source)
    return jax.nn.log_softmax(jaxgen.apply(params, CONFIG, tokens, memory=memory).logits)


def test_the_loss_is_that_of_apply_on_one_pair_without_padding(params):
    source, target = PAIRS[1]
    scores = log_probs(params, np.asarray([source]), np.asarray([[1, *target[:-1]]]))[0]
    wanted = -float(scores[np.arange(len(target)), target].sum())
    alone, _ = found(params, rows([[pair] for pair in PAIRS]))
    assert float(alone.nll[1]) == pytest.approx(wanted, rel=1e-5)

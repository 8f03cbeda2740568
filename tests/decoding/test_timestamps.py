"""The rules of timestamps, beside themselves written as a ladder for one text."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.decoding.history import History
from jaxgen.decoding.processors.timestamps import timestamps
from jaxgen.errors import ConfigError

V, ZERO, STOP, FIRST = 14, 8, 6, 2


def slow(logits, new):
    """Return the logits of one text after its new tokens, as the reference implementation does."""
    out = np.array(logits, np.float64)
    out[ZERO - 1] = -np.inf
    last = bool(new) and new[-1] >= ZERO
    before = len(new) < 2 or new[-2] >= ZERO
    if last and before:
        out[ZERO:] = -np.inf
    elif last:
        out[:STOP] = -np.inf
    times = [i for i in new if i >= ZERO]
    if times:
        least = times[-1] if last and not before else times[-1] + 1
        out[ZERO:least] = -np.inf
    if not new:
        out[:ZERO] = -np.inf
        out[ZERO + FIRST + 1 :] = -np.inf
    with np.errstate(divide="ignore"):
        if np.log(np.exp(out[ZERO:]).sum()) > out[:ZERO].max():
            out[:ZERO] = -np.inf
    return out


def texts(count):
    """Return texts that the rules allow: timestamps never fall."""
    rows = st.lists(st.one_of(st.integers(0, STOP - 1), st.integers(ZERO, V - 1)), max_size=count)
    return rows.filter(lambda row: (times := [t for t in row if t >= ZERO]) == sorted(times))


@settings(max_examples=60, deadline=None)
@given(st.lists(texts(5), min_size=2, max_size=2), st.integers(0, 10**6))
def test_rules_are_those_of_the_ladder(rows, seed):
    logits = np.random.default_rng(seed).standard_normal((2, V)).astype(np.float32) * 3
    prompt = [3, ZERO + 1]  # a prompt's own timestamps don't count
    tokens = np.zeros((2, 7), np.int32)
    for row, new in enumerate(rows):
        tokens[row, : 2 + len(new)] = prompt + new
    count = jnp.array([len(new) for new in rows])
    seen = History(count, jnp.asarray(tokens), count + 2)
    ours = timestamps(ZERO, STOP, first=FIRST)(jnp.asarray(logits), seen)
    np.testing.assert_allclose(ours, [slow(*pair) for pair in zip(logits, rows, strict=True)])


@pytest.mark.parametrize(("name", "value"), [("zero", 0), ("stop", -1), ("first", -1)])
def test_an_id_that_is_none_is_named(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        timestamps(**{"zero": ZERO, "stop": STOP, "first": FIRST} | {name: value})

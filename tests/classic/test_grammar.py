"""Grammars: what is refused and where, what they say, and the same as a decoding step."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import DataError
from jaxgen.models.classic import grammar

HELLO = """
# greetings
S -> 3: Greeting ", " {name} "." | "Bye."
Greeting -> "Hello" | "Good " Time
Time -> "morning" | "evening"
"""
SLOTS = {"name": ["Ann", "Bo"]}
EXPECTED = {"Bye.": 0.25} | {
    f"{greeting}, {name}.": 0.75 * p / 2
    for greeting, p in (("Hello", 0.5), ("Good morning", 0.25), ("Good evening", 0.25))
    for name in SLOTS["name"]
}
BAD = {
    "no rule": ("\n\nS = x", "grammar:3: 'S = x' is no rule"),
    "twice": ('S -> "a"\nS -> "b"', "grammar:2: S is defined twice, first in line 1"),
    "undefined": ('S -> Noun\nNoum -> "a"', "grammar:1: Noun is not defined (did you mean 'Noum'"),
    "open quote": ('S -> "a', "grammar:1: '\"a' is no text"),
    "weight zero": ('S -> 0: "a"', "grammar:1: the weight '0' must be"),
    "weight late": ('S -> "a" 2: "b"', "grammar:1: the weight 2: stands before"),
    "nothing": ("# only a comment", "has no rule"),
    "endless": ('S -> A\nA -> "x" B\nB -> A', "grammar:2: A calls itself without end"),
    "endless on average": ('S -> S S | "a"', "grammar:1: S calls itself without end"),
}


@pytest.mark.parametrize(("text", "part"), BAD.values(), ids=BAD)
def test_a_bad_grammar_is_refused_with_its_line(text, part):
    with pytest.raises(DataError) as caught:
        grammar.parse(text)
    assert part in str(caught.value)


def test_texts_come_with_the_probabilities_written():
    parsed, rng = grammar.parse(HELLO), np.random.default_rng(0)
    seen = Counter(grammar.sample(parsed, rng, SLOTS) for _ in range(2000))
    assert set(seen) == set(EXPECTED)
    for text, p in EXPECTED.items():
        assert abs(seen[text] / 2000 - p) < 0.04
    with pytest.raises(DataError, match=r"slot \{name\} has no texts"):
        for _ in range(50):
            grammar.sample(parsed, rng)


def test_the_decoding_step_gives_each_text_its_probability():
    params = grammar.automaton(grammar.parse(HELLO), lambda text: list(text.encode()), 0, SLOTS)
    step = jax.jit(grammar.step(params, 128))
    for text, p in EXPECTED.items():
        ids, belief = [*text.encode(), 0], grammar.start(params, 1)
        logits, total = grammar.following(params, belief, 128), 0.0
        for token in ids:
            assert float(jnp.exp(logits).sum()) == pytest.approx(1, abs=1e-5)
            total += float(logits[0, token])
            logits, belief = step(jnp.asarray([token]), belief)
        assert np.exp(total) == pytest.approx(p, rel=1e-4)


def test_it_decodes_through_the_same_loop_as_a_transformer():
    params = grammar.automaton(grammar.parse('S -> "ab" | "ac" S'), lambda t: list(t.encode()), 0)
    step, cache = grammar.step(params, 128), grammar.start(params, 64)
    sample = jaxgen.chain(jaxgen.temperature(1.0))
    first = jnp.full(64, ord("a"))
    out, _ = jaxgen.decode(step, cache, first, jax.random.key(0), sample, 9, stop=jnp.asarray([0]))
    texts = ["a" + bytes(row[row > 0].tolist()).decode() for row in np.asarray(out)]
    assert all("acacacacac".startswith(t[:-1] if t.endswith("b") else t) for t in texts)
    assert 0.25 < np.mean([text == "ab" for text in texts]) < 0.75


def test_a_grammar_that_recurs_before_any_text_has_no_automaton():
    parsed = grammar.parse('S -> S "a" | 3: "b"')
    with pytest.raises(DataError, match="before any text"):
        grammar.automaton(parsed, lambda text: list(text.encode()), 0)

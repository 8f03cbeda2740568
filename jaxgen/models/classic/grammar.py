"""Context-free grammars with weights and slots, read from a small text format, as generators.

    # a comment
    S -> 3: Greeting ", " {name} "." | "Bye."
    Greeting -> "Hello" | "Good " Time
    Time -> "morning" | "evening"

The first rule is where texts begin; a number and a colon before an alternative weigh it (default
1); "..." is text with the escapes of JSON; {slot} is filled from a list of texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen import files
from jaxgen.errors import DataError, nearest

WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\{\w+\}|\||[A-Za-z_]\w*|[0-9.eE+-]+:)')
STATES = 200_000
Encode = Callable[[str], Sequence[int]]


class Symbol(NamedTuple):
    """A part of an alternative: kind "text", "rule" or "slot", and its text or name."""

    kind: str
    name: str


@dataclass(frozen=True)
class Grammar:
    """Rules in the order written; the first is the start. lines: where each is defined."""

    rules: Mapping[str, tuple[tuple[float, tuple[Symbol, ...]], ...]]
    lines: Mapping[str, int]

    @property
    def start(self) -> str:
        """Return the rule that texts begin with."""
        return next(iter(self.rules))


def parse(text: str, *, source: str = "grammar") -> Grammar:
    """Return the grammar of a text; DataError naming the line for one that is bad.

    Bad: a malformed line, a rule that is missing or defined twice, a weight that is not positive,
    and a grammar with a loop that never ends, or whose texts have no finite expected length.
    """
    rules: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, row in enumerate(files.lines(text), start=1):
        if not row.strip() or row.lstrip().startswith("#"):
            continue
        where = f"{source}:{number}"
        name, arrow, body = row.partition("->")
        name = name.strip()
        if not arrow or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise DataError(f"{where}: {row.strip()[:60]!r} is no rule; write NAME -> ...")
        if name in rules:
            raise DataError(f"{where}: {name} is defined twice, first in line {lines[name]}")
        rules[name], lines[name] = _alternatives(body, where), number
    if not rules:
        raise DataError(f"{source} has no rule; write at least one NAME -> ...")
    grammar = Grammar(rules, lines)
    _check(grammar, source)
    return grammar


def _alternatives(body: str, where: str) -> tuple[tuple[float, tuple[Symbol, ...]], ...]:
    alternatives, weight, symbols, position = [], 1.0, [], 0
    body = body.rstrip()
    while position < len(body):
        match = WORD.match(body, position)
        if match is None:
            raise DataError(f"{where}: {body[position:].strip()[:40]!r} is no text, name or slot")
        word, position = match[1], match.end()
        if word == "|":
            alternatives.append((weight, tuple(symbols)))
            weight, symbols = 1.0, []
        elif word.endswith(":"):
            weight = _weight(word[:-1], where)
            if symbols:
                raise DataError(f"{where}: the weight {word} stands before its alternative")
        else:
            symbols.append(_symbol(word, where))
    return (*alternatives, (weight, tuple(symbols)))


def _weight(word: str, where: str) -> float:
    try:
        weight = float(word)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise DataError(f"{where}: the weight {word!r} must be a number greater than 0")
    return weight


def _symbol(word: str, where: str) -> Symbol:
    if word[0] == "{":
        return Symbol("slot", word[1:-1])
    if word[0] != '"':
        return Symbol("rule", word)
    try:
        return Symbol("text", json.loads(word))
    except ValueError as error:
        raise DataError(f"{where}: {word[:40]} is no JSON string: {error}") from None


def _check(grammar: Grammar, source: str) -> None:
    rules = grammar.rules
    for name, ways in rules.items():
        for symbol in (s for _, way in ways for s in way if s.kind == "rule"):
            if symbol.name not in rules:
                near = nearest(symbol.name, rules)
                raise DataError(
                    f"{source}:{grammar.lines[name]}: {symbol.name} is not defined{near}"
                )
    order = {name: i for i, name in enumerate(rules)}
    mean = np.zeros((len(rules), len(rules)))
    for name, ways in rules.items():
        total = sum(weight for weight, _ in ways)
        for weight, way in ways:
            for symbol in (s for s in way if s.kind == "rule"):
                mean[order[name], order[symbol.name]] += weight / total
    # Rule i calls rule j mean[i, j] times: the number of calls is finite where the powers vanish.
    for name, i in order.items():
        loop = _closure(mean > 0)
        inside = np.flatnonzero(loop[i] & loop[:, i])
        if len(inside) and max(abs(np.linalg.eigvals(mean[np.ix_(inside, inside)]))) >= 1 - 1e-9:
            raise DataError(
                f"{source}:{grammar.lines[name]}: {name} calls itself without end: its texts have "
                f"no finite expected length; weigh the alternatives that stop more"
            )


def _closure(reach: np.ndarray) -> np.ndarray:
    for k in range(len(reach)):
        reach = reach | (reach[:, k : k + 1] & reach[k : k + 1])
    return reach


def sample(
    grammar: Grammar, rng: np.random.Generator, slots: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return one text; DataError for a slot without texts."""
    parts, stack = [], [Symbol("rule", grammar.start)]
    while stack:
        symbol = stack.pop()
        if symbol.kind == "text":
            parts.append(symbol.name)
            continue
        ways = _ways(grammar, symbol, slots or {})
        weights = np.asarray([weight for weight, _ in ways])
        stack += reversed(ways[rng.choice(len(ways), p=weights / weights.sum())][1])
    return "".join(parts)


def _ways(grammar: Grammar, symbol: Symbol, slots: Mapping[str, Sequence[str]]):
    if symbol.kind == "rule":
        return grammar.rules[symbol.name]
    if not slots.get(symbol.name):
        raise DataError(f"the slot {{{symbol.name}}} has no texts{nearest(symbol.name, slots)}")
    return tuple((1.0, (Symbol("text", text),)) for text in slots[symbol.name])


def automaton(
    grammar: Grammar,
    encode: Encode,
    eos: int,
    slots: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, np.ndarray]:
    """Return the params of `step`: arcs (source, token, p, target) of a weighted automaton.

    A state is the sequence of symbols still to be expanded.

    encode: text -> ids, called once per literal; eos: the id after a complete text. Raises
    DataError beyond STATES states: only recursion at the end of an alternative is finite.
    """
    first: tuple = (Symbol("rule", grammar.start),)
    states: dict[tuple, int] = {first: 0}
    arcs: list[tuple] = []
    waiting: list[tuple] = [first]
    while waiting:
        state = waiting.pop()
        for p, token, after in _moves(grammar, encode, eos, slots or {}, state):
            if after not in states:
                states[after] = len(states)
                waiting.append(after)
            arcs.append((states[state], token, p, states[after]))
        if len(states) > STATES:
            raise DataError(
                f"the grammar has more than {STATES} states; let rules call themselves only at "
                f"the end of an alternative"
            )
    source, token, p, target = zip(*arcs, strict=True)
    return {
        "source": np.asarray(source, np.int32),
        "token": np.asarray(token, np.int32),
        "p": np.asarray(p, np.float32),
        "target": np.asarray(target, np.int32),
    }


def _moves(grammar: Grammar, encode: Encode, eos: int, slots: Any, state: tuple):
    """Yield (p, first token, state after it) of all continuations of a state."""
    waiting = [(1.0, state, 0)]
    while waiting:
        p, left, depth = waiting.pop()
        if depth > 10 * len(grammar.rules) + 10 or len(left) > 10_000:
            raise DataError(f"{grammar.start} calls itself before any text; put text first")
        if not left:
            yield p, eos, ()
            continue
        head, rest = left[0], left[1:]
        if isinstance(head, int):
            yield p, head, rest
        elif head.kind == "text":
            waiting.append((p, (*encode(head.name), *rest), depth))
        else:
            ways = _ways(grammar, head, slots)
            total = sum(weight for weight, _ in ways)
            waiting += [(p * w / total, (*way, *rest), depth + 1) for w, way in ways]


def start(params: Mapping[str, Any], batch: int) -> Float[Array, "B K"]:
    """Return the decoding cache before the first token: the probability of each state."""
    states = int(np.max(params["target"])) + 1
    return jnp.zeros((batch, max(states, 1))).at[:, 0].set(1.0)


def following(params: Mapping[str, Any], belief: Any, vocab_size: int) -> Float[Array, "B V"]:
    """Return the log probability of each next token; -inf where no text continues with it."""
    flow = belief[:, params["source"]] * params["p"]
    total = jnp.zeros((belief.shape[0], vocab_size)).at[:, params["token"]].add(flow)
    return jnp.log(total)


def step(params: Mapping[str, Any], vocab_size: int) -> Callable[..., tuple[Array, Array]]:
    """Return the grammar as a decoding step: (tokens [B], cache) -> (logits [B, V], cache).

    After tokens that begin no text of the grammar all logits are -inf, and decoding stops there.
    Raises DataError if the grammar has ids outside the vocabulary.
    """
    if int(np.max(params["token"])) >= vocab_size:
        raise DataError(
            f"the grammar has id {int(np.max(params['token']))}, outside the vocabulary of "
            f"{vocab_size}; give the size of the tokenizer that encoded it"
        )

    def run(tokens: Any, belief: Array) -> tuple[Array, Array]:
        flow = belief[:, params["source"]] * params["p"] * (params["token"] == tokens[:, None])
        after = jnp.zeros_like(belief).at[:, params["target"]].add(flow)
        total = after.sum(axis=1, keepdims=True)
        after = jnp.where(total > 0, after / jnp.where(total > 0, total, 1.0), 0.0)
        return following(params, after, vocab_size), after

    return run

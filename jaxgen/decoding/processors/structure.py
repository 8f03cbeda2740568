"""Structured output: regular expressions, JSON schemas, choices and tries as automata over tokens.

The table is made on the host; on the device a draw costs two gathers. Tokens that lead to the same
state from every state share a column, so the table of a regular expression stays small.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding.history import History, Requires, replay
from jaxgen.decoding.per_request import column, next_power_of_two, refuse
from jaxgen.decoding.processors import json_schemas
from jaxgen.decoding.processors.base import BANNED, processor
from jaxgen.errors import ConfigError

LARGEST = 2**28  # states times tokens while a table is made: 1 GiB
END = -1  # the state of a text that has stopped
FAR = np.iinfo(np.int32).max // 2
Transitions = Mapping[int, Mapping[int, int]]


@processor()
class Automaton:
    """Allow the tokens that lead from a request's state to another.

    One automaton, or K of S states each, whose states are numbered through: a state tells its
    automaton.

    table: next state [K * S, C], or -1. classes: of each automaton, the column of each token
    [K, V]. starts: first state [1 or B]. distance: fewest tokens from each state to the end
    [K * S]. within: maximum number of new tokens, a number or [B].
    """

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "automaton"
    table: Any
    classes: Any
    starts: Any
    distance: Any
    within: Any

    def validate(self, length: int, beams: int) -> None:
        """Raise ConfigError if texts may be longer than `length`."""
        message = f"of an automaton exceeds length={length}: the text would be cut before it ends"
        refuse(self.within, lambda x: (x > length) & (x < FAR), f"within={{}} {message}")

    def begin(self, history: History) -> Int[Array, "B"]:
        """Return the states after the tokens drawn so far."""
        return replay(history, jnp.asarray(self.starts), self.advance)

    def advance(self, state: Int[Array, "B"], new: Int[Array, "B"]) -> Int[Array, "B"]:
        """Return the states after one more token; -1 after one that was not allowed."""
        token = jnp.clip(new, 0, self.classes.shape[1] - 1)
        index = jnp.asarray(self.classes)[self._automaton(state), token]
        after = jnp.asarray(self.table)[jnp.maximum(state, 0), index]
        return jnp.where((state >= 0) & (new >= 0), after, -1)

    def __call__(
        self, logits: Float[Array, "B V"], history: History, state: Int[Array, "B"] | None = None
    ) -> Float[Array, "B V"]:
        state = self.begin(history) if state is None else state
        after = jnp.asarray(self.table)[jnp.maximum(state, 0)]
        distance = jnp.asarray(self.distance)[jnp.maximum(after, 0)]
        # A text may not go where too few tokens are left to end it.
        left = column(jnp.asarray(self.within)) - history.num_generated[:, None] - 1
        allowed = (after >= 0) & (state >= 0)[:, None] & (distance <= left)
        classes = jnp.asarray(self.classes)
        if len(classes) == 1:
            allowed = allowed[:, classes[0]]
        else:
            allowed = jnp.take_along_axis(allowed, classes[self._automaton(state)], axis=-1)
        missing = logits.shape[-1] - allowed.shape[-1]
        allowed = jnp.pad(allowed, ((0, 0), (0, max(missing, 0))))[:, : logits.shape[-1]]
        return jnp.where(allowed, logits, BANNED)

    def _automaton(self, state: Int[Array, "B"]) -> Int[Array, "B"]:
        return jnp.maximum(state, 0) // (len(self.table) // len(self.classes))


@arguments.checked(stop=at_least(0), within=at_least(1))
def regex(
    pattern: str, pieces: Sequence[bytes], stop: int, *, within: int | None = None
) -> Automaton:
    """Return a processor whose texts match a regular expression as a whole, then `stop`.

    Args:
        pattern: in the syntax of Rust's regex crate: no look-around, no back-references.
        pieces: bytes of each token, b"" for one that spells nothing; `tokenizer.surface.pieces`.
        stop: id that ends a text.
        within: maximum number of new tokens, `stop` included; the text is completed by then.

    Raises:
        ConfigError: for an invalid pattern, one that this vocabulary cannot spell, or that no text
            of `within` tokens matches; if outlines-core is not installed.

    >>> digits = jaxgen.regex("[0-9]", [b"", b"a", b"7"], stop=0)
    >>> history = History(jnp.array([0]), jnp.array([[1]]), jnp.array([1]))
    >>> digits(jnp.zeros((1, 3)), history)
    Array([[-inf, -inf,   0.]], dtype=float32)
    """
    core = _outlines()
    ids: dict[bytes, list[int]] = {}
    for token, piece in enumerate(pieces):
        if piece and token != stop:
            ids.setdefault(bytes(piece), []).append(token)
    try:
        index = core.Index(pattern, core.Vocabulary(stop, ids))
    except ValueError as error:
        raise ConfigError(
            f"regex {pattern[:80]!r} can't be compiled: {error}; it takes no look-around and no "
            f"back-reference, and the vocabulary must spell it"
        ) from None
    moves = {state: dict(to) for state, to in index.get_transitions().items()}
    for state in index.get_final_states():
        moves.setdefault(state, {})[stop] = END
    return _build(moves, index.get_initial_state(), stop, len(pieces), within, f"regex {pattern!r}")


@arguments.checked(stop=at_least(0), within=at_least(1))
def choices(
    texts: Sequence[str], pieces: Sequence[bytes], stop: int, *, within: int | None = None
) -> Automaton:
    """Return a processor that spells one of the `texts`, in any of its tokenisations.

    Args:
        texts: at least one, none empty. Raises ConfigError otherwise.
        pieces, stop, within: as in `regex`.

    >>> history = History(jnp.array([0]), jnp.array([[1]]), jnp.array([1]))
    >>> jaxgen.choices(["ab", "c"], [b"", b"a", b"b", b"c"], 0)(jnp.zeros((1, 4)), history)
    Array([[-inf,   0., -inf,   0.]], dtype=float32)
    """
    if not texts or any(not text for text in texts):
        raise ConfigError(f"choices={list(texts)!r} must be texts, none empty")
    pattern = "|".join(f"(?:{re.escape(text)})" for text in texts)
    return regex(pattern, pieces, stop, within=within)


@arguments.checked(stop=at_least(0), within=at_least(1))
def json_schema(
    description: Mapping[str, Any] | str,
    pieces: Sequence[bytes],
    stop: int,
    *,
    within: int | None = None,
) -> Automaton:
    """Return a processor whose texts are JSON that a JSON schema describes.

    Args:
        description: the schema, as a mapping or as JSON. Raises ConfigError for one that no regular
            expression can say, such as a recursive one, or one with bounds of numbers.
        pieces, stop, within: as in `regex`.

    >>> history = History(jnp.array([0]), jnp.array([[1]]), jnp.array([1]))
    >>> boolean = jaxgen.json_schema({"type": "boolean"}, [b"", b"true", b"false", b"x"], 0)
    >>> boolean(jnp.zeros((1, 4)), history)
    Array([[-inf,   0.,   0., -inf]], dtype=float32)
    """
    pattern = json_schemas.pattern_of(description)
    return regex(pattern, pieces, stop, within=within)


@arguments.checked(stop=at_least(0), vocab=at_least(1), within=at_least(1))
def trie(
    sequences: Sequence[Sequence[int]], stop: int, vocab: int, *, within: int | None = None
) -> Automaton:
    """Return a processor that draws one of the token `sequences`, then `stop`.

    As transformers' prefix_allowed_tokens_fn over a tree of prefixes (De Cao et al. 2021).

    Args:
        sequences: token ids from 0 to vocab - 1, at least one sequence.
        stop: id that ends a text, in none of the sequences. Raises ConfigError otherwise.
        vocab: size of the vocabulary.
        within: as in `regex`.
    """
    moves: dict[int, dict[int, int]] = {0: {}}
    for sequence in sequences:
        state = 0
        for token in sequence:
            if not 0 <= token < vocab or token == stop:
                raise ConfigError(
                    f"trie: token {token} must be 0 to {vocab - 1}, and not stop={stop}"
                )
            if token not in moves[state]:
                moves[state][token] = len(moves)
                moves[len(moves)] = {}
            state = moves[state][token]
        moves[state][stop] = END
    if not sequences:
        raise ConfigError("trie of no sequences allows nothing; give at least one")
    return _build(moves, 0, stop, vocab, within, "trie")


def requests(automata: Sequence[Automaton | None]) -> Automaton:
    """Return one automaton for a batch: each request's own, None for an unconstrained one."""
    vocab = max((one.classes.shape[1] for one in automata if one is not None), default=0)
    if not vocab:
        raise ConfigError("requests: every automaton is None; leave it out of the chain")
    parts = [free(vocab) if one is None else one for one in automata]
    states, columns = (max(one.table.shape[axis] for one in parts) for axis in (0, 1))
    count = len(parts)
    parts += [free(vocab)] * (next_power_of_two(count) - count)
    parts = [resized(one, states, columns, at=states * k) for k, one in enumerate(parts)]
    return Automaton(
        table=np.concatenate([one.table for one in parts]),
        classes=np.concatenate([one.classes for one in parts]),
        starts=np.concatenate([one.starts for one in parts[:count]]),
        distance=np.concatenate([one.distance for one in parts]),
        within=np.asarray([one.within for one in parts[:count]], np.int32),
    )


def free(vocab: int) -> Automaton:
    """Return the automaton that allows every token of a vocabulary, for ever."""
    table, classes = np.zeros((1, 1), np.int32), np.zeros((1, vocab), np.int32)
    return Automaton(table, classes, np.zeros(1, np.int32), np.zeros(1, np.int32), FAR)


def resized(one: Automaton, states: int, columns: int, *, at: int) -> Automaton:
    """Return an automaton with room for so many states and columns, the first state being `at`."""
    more = ((0, states - one.table.shape[0]), (0, columns - one.table.shape[1]))
    table = np.pad(one.table, more, constant_values=-1)
    distance = np.pad(one.distance, more[0], constant_values=FAR).astype(np.int32)
    table = np.where(table < 0, -1, table + at).astype(np.int32)
    return Automaton(table, one.classes, one.starts + np.int32(at), distance, one.within)


def _outlines() -> Any:
    try:
        return import_module("outlines_core")
    except ImportError:
        raise ConfigError(json_schemas.MISSING) from None


def _build(
    moves: Transitions, start: int, stop: int, vocab: int, within: int | None, name: str
) -> Automaton:
    moves = {**moves, END: {stop: END}}
    states = {state: number for number, state in enumerate(sorted({*moves, start}))}
    for target in (target for targets in moves.values() for target in targets.values()):
        states.setdefault(target, len(states))
    used = sorted({token for targets in moves.values() for token in targets})
    if len(states) * len(used) > LARGEST:
        raise ConfigError(
            f"{name[:80]} has {len(states)} states for {len(used)} tokens, too many; simplify it"
        )
    places = {token: place for place, token in enumerate(used)}
    table = np.full((len(states), len(used) + 1), -1, np.int32)  # the last: of all other tokens
    for state, targets in moves.items():
        columns = [places[token] for token in targets]
        table[states[state], columns] = [states[target] for target in targets.values()]
    columns, chosen = _distinct_columns(table)
    classes = np.full(vocab, chosen[-1], np.int32)
    classes[used] = chosen[:-1]
    distance = _distances_to_end(columns, states[END])
    first = states[start]
    if distance[first] >= FAR:
        raise ConfigError(f"{name[:80]}: this vocabulary can't spell it and end")
    if within is not None and distance[first] > within:
        raise ConfigError(
            f"{name[:80]} needs {distance[first]} tokens at least, but within={within}"
        )
    one = Automaton(
        table=columns,
        distance=distance,
        classes=classes[None],
        starts=np.asarray([first], np.int32),
        within=FAR if within is None else within,
    )
    return resized(one, *map(next_power_of_two, columns.shape), at=0)


def _distinct_columns(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (distinct columns of a table, which of them each one is), by hash: np.unique sorts."""
    numbers: dict[bytes, int] = {}
    columns = np.ascontiguousarray(table.T)
    classes = [numbers.setdefault(column.tobytes(), len(numbers)) for column in columns]
    _, firsts = np.unique(classes, return_index=True)
    return table[:, firsts], np.asarray(classes, np.int32)


def _distances_to_end(columns: np.ndarray, end: int) -> np.ndarray:
    """The fewest tokens, the stop token included, from each state to the end of the text."""
    distance = np.where(np.arange(len(columns)) == end, 0, FAR)
    for _ in range(len(columns)):
        through = np.where(columns >= 0, distance[np.maximum(columns, 0)], FAR).min(axis=1)
        nearer = np.minimum(distance, np.minimum(through + 1, FAR))
        if (nearer == distance).all():
            break
        distance = nearer
    return distance.astype(np.int32)

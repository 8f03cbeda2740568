"""Stop strings: an automaton over tokens, followed inside the loop, that knows a text's end.

The strings of each request become an Aho-Corasick automaton over bytes (Aho and Corasick 1975),
which is then run over the spelling of every token, so a string is found wherever tokens split it.
The tables are made on the host; on the device a token costs two gathers. Tokens that no state
tells apart share a column.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxgen import arguments
from jaxgen.arrays import Axes
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

FOUND = 0  # the state of a text that holds one of its strings; it has no way out
LONGEST = 2**13  # bytes of all strings
LARGEST = 2**24  # states times kinds of tokens while tables are made
SMALLEST = 32  # of either side of the table: both are powers of two, so few are ever compiled
Texts = Sequence[str] | Sequence[Sequence[str]]


class Reason(IntEnum):
    """Why a request ended."""

    LENGTH = 0  # it ran to `length`, or to its own limit
    STOP = 1  # its last token is one of its stop ids
    NOT_FINITE = 2  # the model's logits held NaN, or nothing finite
    BANNED = 3  # the processors left no token to draw
    STRING = 4  # its text holds one of its stop strings
    TIME = 5  # its time was over; only who reads the clock, between chunks, can say so


@register_dataclass
@dataclass(frozen=True)
class StopStrings:
    """Where each request's text stands among its stop strings.

    table: next state [S, C]; classes: column of each token [V]; state: [1 or B].
    """

    table: Any
    classes: Any
    state: Annotated[Any, Axes("integer", ("#B",))]
    made_by: ClassVar[str] = "stop_strings"

    def advance(self, state: Int[Array, "B"], new: Int[Array, "B"]) -> Int[Array, "B"]:
        """Return the states after one more token; ids that spell nothing change none."""
        known = (new >= 0) & (new < len(self.classes))
        kind = jnp.asarray(self.classes)[jnp.where(known, new, 0)]
        return jnp.where(known, jnp.asarray(self.table)[state, kind], state)

    def at(self, state: Int[Array, "B"] | None) -> StopStrings:
        """Return the same strings for texts that stand at `state`, to go on from."""
        return replace(self, state=state)

    def states(self, batch: int) -> Int[Array, "{batch}"]:
        """Return the state of each request."""
        return jnp.broadcast_to(jnp.asarray(self.state, jnp.int32), batch)


def found(state: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Return which texts hold one of their stop strings."""
    return state == FOUND


def ended_by(
    stop_state: Int[Array, "..."] | None, stopped: Bool[Array, "..."]
) -> Int[Array, "..."]:
    """Return the Reason of texts, from their stop-string state and whether a stop id ended them."""
    reason = jnp.full(stopped.shape, Reason.LENGTH)
    if stop_state is not None:
        reason = jnp.where(found(stop_state), Reason.STRING, reason)
    return jnp.where(stopped, Reason.STOP, reason)


@arguments.checked
def stop_strings(texts: Texts, pieces: Sequence[bytes]) -> StopStrings:
    """Return what ends a request once its new text holds one of its stop strings.

    texts: the strings of all requests, or a list of them for each request; a request may have none.
    pieces: the bytes of each token, b"" for one that spells nothing.
    The prompt does not count: a string must lie in the new text. Tables are padded to powers of
    two, so other strings seldom recompile.
    Raises ConfigError for an empty string, one with U+FFFD (which stands for bytes that are no
    character) or half a surrogate pair, or strings too many and long for the vocabulary.
    """
    alone = all(isinstance(text, str) for text in texts)
    requests: list[Any] = [tuple(texts)] if alone else [tuple(row) for row in texts]
    for text in (text for row in requests for text in row):
        _check(text)
    sets = list(dict.fromkeys(requests))
    encoded = [[text.encode() for text in row] for row in sets]
    strings = [string for row in encoded for string in row]
    size = sum(map(len, strings))
    kinds, numbers = _spellings(strings, pieces) if size <= LONGEST else ([], None)
    if size > LONGEST or size * len(kinds) > LARGEST:
        raise ConfigError(
            f"stop strings of {size} bytes in all are too many for {len(pieces)} tokens; "
            f"give fewer or shorter ones"
        )
    moves, roots = _automaton(encoded)
    reached = np.empty((len(moves), len(kinds)), np.int32)
    for number, spelling in enumerate(kinds):
        state = np.arange(len(moves))
        for byte in spelling:
            state = moves[state, byte]
        reached[:, number] = state
    columns, classes = np.unique(reached, axis=1, return_inverse=True)
    rows, width = (max(SMALLEST, 1 << (n - 1).bit_length()) for n in columns.shape)
    table = np.zeros((rows, width), np.int32)
    table[: columns.shape[0], : columns.shape[1]] = columns
    starts = np.asarray([roots[sets.index(row)] for row in requests], np.int32)
    return StopStrings(table, classes.reshape(-1).astype(np.int32)[numbers], starts)


def _check(text: Any) -> None:
    if not isinstance(text, str) or not text:
        raise ConfigError(f"stop={text!r} must be a text of at least one character")
    if "\ufffd" in text:
        raise ConfigError(
            f"stop={text!r} holds U+FFFD, which stands for bytes that are no character; "
            f"leave it out"
        )
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise ConfigError(
            f"stop={text!r} holds half a surrogate pair, which no text can; remove it"
        )


def _automaton(sets: list[list[bytes]]) -> tuple[np.ndarray, list[int]]:
    """Return (moves [S, 256], root of each set): one automaton a set, all with FOUND as the end."""
    tables, roots, size = [np.full((1, 256), FOUND)], [], 1
    for strings in sets:
        table = _aho_corasick(strings)
        roots.append(size)
        tables.append(np.where(table < 0, FOUND, table + size))
        size += len(table)
    return np.concatenate(tables), roots


def _aho_corasick(strings: list[bytes]) -> np.ndarray:
    """Return the next state [S, 256] from each, state 0 the root; -1 where a string is complete."""
    children: list[dict[int, int]] = [{}]
    final = [False]
    for string in strings:
        state = 0
        for byte in string:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                final.append(False)
            state = children[state][byte]
        final[state] = True
    table = np.zeros((len(children), 256), np.int64)
    back = [0] * len(children)
    queue = deque([0])
    while queue:
        state = queue.popleft()
        final[state] |= final[back[state]]
        table[state] = table[back[state]] if state else 0
        for byte, child in children[state].items():
            back[child] = table[state, byte]  # where a text that ends as this one's tail would be
            table[state, byte] = child
            queue.append(child)
    return np.where(np.asarray(final)[table], -1, table)


def _spellings(strings: list[bytes], pieces: Sequence[bytes]) -> tuple[list[bytes], np.ndarray]:
    """Return (distinct spellings, which of them each token has), with all foreign bytes as one."""
    if not strings:
        return [b""], np.zeros(len(pieces), np.int64)
    foreign = bytes(sorted(set(range(256)) - {byte for string in strings for byte in string}))
    one = foreign[:1]
    same = bytes.maketrans(foreign, one * len(foreign))
    # A byte of no string leads back to the root; after it, a second one changes nothing.
    many = re.compile(re.escape(one) + b"{2,}") if one else None
    known: dict[bytes, int] = {}
    numbers = np.empty(len(pieces), np.int64)
    for token, piece in enumerate(pieces):
        spelling = bytes(piece).translate(same)
        spelling = many.sub(lambda _: one, spelling) if many else spelling
        numbers[token] = known.setdefault(spelling, len(known))
    return list(known), numbers

"""Why and where requests end: reasons, and stop strings as automata over tokens.

The strings of each request become an Aho-Corasick automaton over bytes (Aho and Corasick 1975),
which is then run over the spelling of every token, so a string is found wherever tokens split it.
The tables are made on the host; on the device a token costs two gathers. Tokens that lead to the
same state from every state share a column.
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
from jaxgen.decoding.per_request import next_power_of_two
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

FOUND = 0  # the state of a text that holds one of its strings; it has no way out
LONGEST = 2**13  # bytes of all strings
LARGEST = 2**24  # states times distinct spellings while tables are made
SMALLEST = 32  # least size of either side of the table
Texts = Sequence[str] | Sequence[Sequence[str]]


class Reason(IntEnum):
    """Why a request ended."""

    LENGTH = 0  # it ran to `length`, or to its own limit
    STOP = 1  # its last token is one of its stop ids
    NOT_FINITE = 2  # the model's logits held NaN, or nothing finite
    BANNED = 3  # the processors left no token to draw
    STRING = 4  # its text holds one of its stop strings
    TIME = 5  # its time was over; set between chunks, where the clock is read
    FILTER = 6  # its policy ended it, or left no token to draw; set on the host


@register_dataclass
@dataclass(frozen=True)
class StopStrings:
    """The automaton of the stop strings, and its state for each request.

    table: next state [S, C]. classes: column of each token [V]. state: [1 or B].
    """

    table: Any
    classes: Any
    state: Annotated[Any, Axes("integer", ("#B",))]
    made_by: ClassVar[str] = "stop_strings"

    def advance(self, state: Int[Array, "B"], new: Int[Array, "B"]) -> Int[Array, "B"]:
        """Return the states after one more token; an id that spells nothing changes none."""
        valid = (new >= 0) & (new < len(self.classes))
        index = jnp.asarray(self.classes)[jnp.where(valid, new, 0)]
        return jnp.where(valid, jnp.asarray(self.table)[state, index], state)

    def at(self, state: Int[Array, "B"] | None) -> StopStrings:
        """Return the automaton with other states."""
        return replace(self, state=state)

    def states(self, batch: int) -> Int[Array, "{batch}"]:
        """Return the state of each request."""
        return jnp.broadcast_to(jnp.asarray(self.state, jnp.int32), batch)


def has_stop_string(state: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Return which texts hold one of their stop strings."""
    return state == FOUND


def ended_by(
    stop_state: Int[Array, "..."] | None, stopped: Bool[Array, "..."]
) -> Int[Array, "..."]:
    """Return the Reason of texts, from their stop-string state and whether a stop id ended them."""
    reason = jnp.full(stopped.shape, Reason.LENGTH)
    if stop_state is not None:
        reason = jnp.where(has_stop_string(stop_state), Reason.STRING, reason)
    return jnp.where(stopped, Reason.STOP, reason)


@arguments.checked
def stop_strings(texts: Texts, pieces: Sequence[bytes]) -> StopStrings:
    """Return the automaton that ends a request once its new text holds a stop string.

    Args:
        texts: the strings of all requests, or a list of them for each request, which may be empty.
        pieces: bytes of each token, b"" for one that spells nothing; `tokenizer.surface.pieces`.

    Returns:
        StopStrings, the argument `strings=` of decoding. The prompt does not count.

    Raises:
        ConfigError: for an empty string, one with U+FFFD (which stands for bytes that are no
            character) or half a surrogate pair, or strings too many and long for the vocabulary.

    >>> strings = jaxgen.stop_strings(["bc"], [b"a", b"ab", b"ca"])
    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 3), cache)
    >>> args = (count, (), jnp.array([0]), jax.random.key(0), jaxgen.greedy(), 4)
    >>> jaxgen.decode_detailed(*args, top=0, strings=strings).num_generated
    Array([2], dtype=int32)
    """
    shared = all(isinstance(text, str) for text in texts)
    requests: list[Any] = [tuple(texts)] if shared else [tuple(row) for row in texts]
    for text in (text for row in requests for text in row):
        check_string(text)
    sets = list(dict.fromkeys(requests))
    encoded = [[text.encode() for text in row] for row in sets]
    strings = [string for row in encoded for string in row]
    size = sum(map(len, strings))
    spellings, numbers = _spellings(strings, pieces) if size <= LONGEST else ([], None)
    if size > LONGEST or size * len(spellings) > LARGEST:
        raise ConfigError(
            f"stop strings of {size} bytes in all are too many for {len(pieces)} tokens; "
            f"give fewer or shorter ones"
        )
    moves, roots = _automaton(encoded)
    targets = np.empty((len(moves), len(spellings)), np.int32)
    for number, spelling in enumerate(spellings):
        state = np.arange(len(moves))
        for byte in spelling:
            state = moves[state, byte]
        targets[:, number] = state
    columns, classes = np.unique(targets, axis=1, return_inverse=True)
    rows, width = (next_power_of_two(n, SMALLEST) for n in columns.shape)
    table = np.zeros((rows, width), np.int32)
    table[: columns.shape[0], : columns.shape[1]] = columns
    starts = np.asarray([roots[sets.index(row)] for row in requests], np.int32)
    return StopStrings(table, classes.reshape(-1).astype(np.int32)[numbers], starts)


def check_string(text: Any) -> None:
    """Raise ConfigError unless a stop string is a text that can be found."""
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
    numbers_of: dict[bytes, int] = {}
    numbers = np.empty(len(pieces), np.int64)
    for token, piece in enumerate(pieces):
        spelling = bytes(piece).translate(same)
        spelling = many.sub(lambda _: one, spelling) if many else spelling
        numbers[token] = numbers_of.setdefault(spelling, len(numbers_of))
    return list(numbers_of), numbers

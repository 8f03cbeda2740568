"""Blocked texts in the decoding loop: no token is drawn that would complete one.

The rules become an automaton over characters, and its states a table over tokens: a token's bytes
may complete a character, hold several, and begin another, so a state is a state of the rules and a
place inside a character. Tokens that do the same share a column. On the device a draw costs two
gathers, as for `structure.regex`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen.decoding.history import History, Requires, replay
from jaxgen.decoding.per_request import column
from jaxgen.decoding.processors.base import BANNED, processor
from jaxgen.errors import ConfigError
from jaxgen.safety import alphabet
from jaxgen.safety.expressions import Nfa
from jaxgen.safety.machine import Machine

BYTES = 4  # of the longest character
DEAD = 0  # the state of a text that holds what is blocked; nothing leads out of it
STATES = 2**14
LARGEST = 2**27  # bytes of the table


@processor()
class TokenFilter:
    """Ban the tokens that would complete a blocked text, and an end that would.

    A state is a state of the rules + S * the node of UTF-8 that it is in.

    table: next state [S, C], DEAD where a token is banned. ends: whether the end of the text would
    complete a match [S]. columns: of each token [V] between characters, and inside of one [2, V].
    inner: those of the tokens that go on with a character, [N, T], at the ids `continuing` [T].
    nodes: the node behind each token [V], -1 of one that spells nothing; inner_nodes: [N, T].
    partial: ids [P] of tokens that end inside of a character; viable: whether one may be completed
    there, [S, N]. starts: first state [1 or B]. within: most new tokens, [] or [B]. stop: ids
    [B, E] of an end.
    """

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "policy"
    table: Any
    ends: Any
    columns: Any
    nodes: Any
    continuing: Any
    inner: Any
    inner_nodes: Any
    partial: Any
    viable: Any
    starts: Any
    within: Any
    stop: Any

    def begin(self, history: History) -> Int[Array, "B"]:
        """Return the states after the tokens drawn so far."""
        return replay(history, jnp.asarray(self.starts), self.advance)

    def advance(self, state: Int[Array, "B"], new: Int[Array, "B"]) -> Int[Array, "B"]:
        """Return the states after one more token; one that spells nothing changes none."""
        rules, node = self._parts(state)
        token = jnp.clip(new, 0, self.columns.shape[1] - 1)
        col = jnp.asarray(self.columns)[jnp.minimum(node, 1), token]
        after = jnp.asarray(self.nodes)[token]
        if len(self.continuing):
            same = jnp.asarray(self.continuing) == token[:, None]
            at, inside = jnp.argmax(same, axis=1), jnp.any(same, axis=1)
            col = jnp.where(inside, jnp.asarray(self.inner)[node, at], col)
            after = jnp.where(inside, jnp.asarray(self.inner_nodes)[node, at], after)
        moved = jnp.asarray(self.table)[rules, col] + len(self.table) * after
        return jnp.where((new < 0) | (after < 0), state, moved).astype(jnp.int32)

    def __call__(
        self, logits: Float[Array, "B V"], history: History, state: Int[Array, "B"] | None = None
    ) -> Float[Array, "B V"]:
        state = self.begin(history) if state is None else state
        rules, node = self._parts(state)
        after, ends = jnp.asarray(self.table)[rules], jnp.asarray(self.ends)
        left = column(jnp.asarray(self.within)) - history.num_generated[:, None]
        columns_allowed = (after != DEAD) & ~(ends[after] & (left <= 1))  # [B, C]
        allowed = self._allowed_tokens(columns_allowed, after, node, left)
        is_stop = jnp.any(
            jnp.arange(allowed.shape[1]) == jnp.atleast_2d(jnp.asarray(self.stop))[..., None],
            axis=1,
        )
        allowed = allowed & ~(is_stop & ends[rules][:, None])
        missing = logits.shape[-1] - allowed.shape[-1]
        allowed = jnp.pad(allowed, ((0, 0), (0, max(missing, 0))))[:, : logits.shape[-1]]
        return jnp.where(allowed, logits, BANNED)

    def _allowed_tokens(
        self,
        columns_allowed: Bool[Array, "B C"],
        after: Int[Array, "B C"],
        node: Int[Array, "B"],
        left: Int[Array, "B 1"],
    ) -> Bool[Array, "B V"]:
        columns, viable = jnp.asarray(self.columns), jnp.asarray(self.viable)

        def complete(allowed, of):
            """Ban the tokens that begin a character of which all completions are banned."""
            if not len(self.partial):
                return allowed
            partial = jnp.asarray(self.partial)
            states = jnp.take_along_axis(
                after, jnp.broadcast_to(of, allowed.shape)[:, partial], axis=1
            )
            # A character that is needed before the end must have room for all of its bytes.
            able = viable[states, jnp.asarray(self.nodes)[partial]]
            able = able & ~(jnp.asarray(self.ends)[states] & (left <= BYTES))
            return allowed.at[:, partial].set(allowed[:, partial] & able)

        def inside(_):
            of = columns[jnp.minimum(node, 1)]
            allowed = complete(jnp.take_along_axis(columns_allowed, of, axis=1), of)
            if not len(self.continuing):
                return allowed
            of = jnp.asarray(self.inner)[node]
            states = jnp.take_along_axis(after, of, axis=1)
            able = viable[states, jnp.asarray(self.inner_nodes)[node]]
            inner = jnp.take_along_axis(columns_allowed, of, axis=1) & able
            return allowed.at[:, jnp.asarray(self.continuing)].set(inner)

        # Between characters all rows share their columns, as most tokens of most texts do.
        between = lambda _: complete(columns_allowed[:, columns[0]], columns[0][None])  # noqa: E731
        return lax.cond(jnp.any(node > 0), inside, between, None)

    def _parts(self, state: Int[Array, "B"]) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
        return state % len(self.table), state // len(self.table)


class Blocked:
    """The automaton of blocked texts, and of each state the table over a tokenizer's pieces.

    Args:
        nfa: the rules that forbid.
        pieces: bytes of each token, b"" for one that spells nothing.
        label: what the rules are called in messages.

    Raises:
        ConfigError: for rules that are too many.

    Attributes:
        first: which tokens [V] a text may begin with.
    """

    def __init__(self, nfa: Nfa, pieces: Sequence[bytes], label: str) -> None:
        of, members = alphabet.classes_of(nfa)
        moves, self.ends = _determined(nfa, members, label)
        self.moves, which = np.unique(moves, axis=1, return_inverse=True)
        self.letters = alphabet.make(which.reshape(-1)[of].astype(np.uint16))
        self._table(pieces, label)

    def start(self, before: str = "") -> int:
        """Return the state of a text that goes on from `before`.

        What is blocked and stands there already is let be.
        """
        state = 1
        for character in before:
            after = int(self.moves[state, self.letters.of[ord(character)]])
            if after == DEAD:  # what begins with the character may go on
                after = int(self.moves[1, self.letters.of[ord(character)]]) or 1
            state = after
        return state

    def processor(self, starts: Any, within: Any, stop: Any) -> TokenFilter:
        """Return the processor of a batch; see `TokenFilter`."""
        return TokenFilter(
            *(self.table, self.ends, self.columns, self.nodes, self.continuing),
            *(self.inner, self.inner_nodes, self.partial, self.viable, starts, within, stop),
        )

    def _table(self, pieces: Sequence[bytes], label: str) -> None:
        numbers: dict[tuple[int, ...], int] = {(): 0}
        wrong = int(self.letters.of[alphabet.REPLACEMENT])

        def number(classes: tuple[int, ...]) -> int:
            return numbers.setdefault(classes, len(numbers))

        walked = [self.letters.walk(piece, 0) for piece in pieces]
        ends = [node if piece else -1 for (_, node), piece in zip(walked, pieces, strict=True)]
        self.nodes = np.asarray(ends, np.int32)
        first = [number(classes) for classes, _ in walked]
        broken = [number((wrong, *classes) if piece else ())
                  for (classes, _), piece in zip(walked, pieces, strict=True)]  # fmt: skip
        self.continuing = np.asarray(
            [i for i, piece in enumerate(pieces) if piece and 0x80 <= piece[0] < 0xC0], np.int32
        )
        many = len(self.letters.tree) if self.nodes.max() > 0 else 1
        inner = [[self.letters.walk(pieces[i], n) for i in self.continuing] for n in range(many)]
        self.inner_nodes = np.asarray([[n for _, n in row] for row in inner], np.int32)
        self.partial = np.flatnonzero(self.nodes > 0).astype(np.int32)
        always, completions = np.ones(len(self.moves), bool), self.letters.completions()[1:many]
        viable = [(self.moves[:, list(classes)] != DEAD).any(axis=1) for classes in completions]
        self.viable = np.stack([always, *viable], axis=1)
        inner_columns = [[number(classes) for classes, _ in row] for row in inner]
        distinct, which = self._columns(list(numbers), label)
        self.table = distinct
        self.columns = which[np.asarray([first, broken])]
        self.inner = which[np.asarray(inner_columns, np.int64).reshape(many, -1)]
        self.first = self.table[1, self.columns[0]] != DEAD

    def _columns(
        self, strings: Sequence[tuple[int, ...]], label: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (distinct columns [S, C], which each string has); column 0 is the empty one's."""
        states = np.arange(len(self.moves), dtype=np.int16)
        moves = np.ascontiguousarray(self.moves.T)
        numbers: dict[bytes, int] = {b"": 0}
        columns, which = [states], np.zeros(len(strings), np.int32)
        for place, classes in enumerate(strings[1:], 1):
            after = states
            for one in classes:
                after = moves[one][after]
            key = after.tobytes()
            if key not in numbers:
                numbers[key] = len(columns)
                columns.append(after)
                if len(columns) * after.nbytes > LARGEST:
                    raise ConfigError(f"{label} are too many for this tokenizer; forbid fewer, or "
                                      f"mask some")  # fmt: skip
            which[place] = numbers[key]
        return np.stack(columns, axis=1).astype(np.int32), which


def _determined(nfa: Nfa, members: Sequence[str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (next state [S, K] after one of each class, whether the end completes a match [S])."""
    machine = Machine(nfa)
    numbers, rows, ends = {machine.root: 1}, [np.zeros(len(members), np.int16)], [False]
    todo = deque([machine.root])
    while todo:
        state, row = todo.popleft(), np.zeros(len(members), np.int16)
        for place, character in enumerate(members):
            after = machine.blocked(state, character)
            if after is None:
                continue
            if after not in numbers:
                numbers[after] = len(numbers) + 1
                todo.append(after)
            row[place] = numbers[after]
        if len(numbers) >= STATES:
            raise ConfigError(f"{label} have more than {STATES} states together; forbid fewer")
        rows.append(row)
        ends.append(bool(machine.finish(state)))
    return np.stack(rows), np.asarray(ends)


def pieces_of(tokenizer: Any) -> tuple[bytes, ...]:
    """Return the bytes of each token, in the midst of a text where its neighbours change it."""
    surface = getattr(tokenizer, "surface", None)
    if surface is not None:
        return tuple(surface.pieces)
    decode, size = tokenizer.decode, tokenizer.vocab_size
    word = next((i for i in range(size) if decode([i]).isalnum()), None)
    if word is None:
        raise ConfigError("a policy needs a tokenizer with a word among its pieces; this has none")
    begin = decode([word])
    spelled = (decode([word, token]) for token in range(size))
    return tuple(
        (text[len(begin) :] if text.startswith(begin) else text).encode() for text in spelled
    )

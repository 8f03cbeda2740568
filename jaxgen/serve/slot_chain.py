"""One chain of logits processors for all slots, whatever each request asks for.

Every processor that requests may set is in the chain, with the neutral value where one does not
set it, and arrays of fixed sizes: so there is one program. Groups of processors that no request of
a chunk needs are skipped (`decoding.when`): neutral ones cost up to 100 ms a token for a vocabulary
of 49,152. What does not fit into these sizes has no place here, and decodes on its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxgen.decoding.chain import Chain
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.processors.bias import ANY
from jaxgen.decoding.processors.structure import FAR, Automaton, free, resized
from jaxgen.decoding.when import When
from jaxgen.safety.policy import read_policy, text_before
from jaxgen.text.batches import Request
from jaxgen.text.processors import ORDER, ChainContext, is_set, parts_of, stops_of, structure_of
from jaxgen.text.request import Generation
from jaxgen.tokens import Tokenizer

# In the order of `text.processors.ORDER`; those of a group are skipped together.
REPEATS = (
    *("bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram"),
    *("bad_words", "min_length", "min_new_tokens"),
)
STRUCTURE = ("regex",)
FORCING = ("force_first", "force_last", "decay_factor", "suppress_ids", "suppress_first_ids")
RARE = ("typical", "epsilon", "eta", "top_n_sigma")
POLICY = ("policy",)
GROUPS = (
    *(REPEATS, STRUCTURE, FORCING, POLICY),
    *(("temperature",), ("top_k",), ("top_p",), ("min_p",), RARE),
)
KNOWN = frozenset(name for group in GROUPS for name in group)
SIZED = KNOWN - {*STRUCTURE, *POLICY}  # whose arrays have one size for all requests
FREE = {"regex": None, "json_schema": None, "choices": ()}  # what sets no structure

# Sizes of a request's tables, and what fills them up, by the name of the array.
STOPS = 16
SIZES: dict[str, tuple[tuple[int, ...], Any]] = {
    "starts": ((512, 4), ANY),
    "ends": ((512,), np.iinfo(np.int32).max),
    "bias": ((512,), 0.0),
    "tokens": ((256,), NO_TOKEN),
    "stop": ((STOPS,), NO_TOKEN),
}
STATES, COLUMNS = 1024, 512  # of an automaton: a schema of ten properties has about 300 states


class ChainRow(NamedTuple):
    """A request's part of the chain: the arrays of its processors, and the groups that it needs."""

    parts: dict[str, Any]
    needs: frozenset[int]
    stops: np.ndarray  # [1, STOPS]
    structure: Hashable = None  # what its automaton was made of
    automaton: Automaton | None = None
    limit: int = FAR
    filters: tuple[int, ...] = ()  # the first states of the policy's tables


class SlotChain:
    """The chain of `slots` requests at once; it holds their automata on the device.

    policy: the file of the policy that all of them have.
    """

    def __init__(
        self, tokenizer: Tokenizer, num_ids: int, slots: int, policy: str | None = None
    ) -> None:
        self.tokenizer, self.num_ids, self.policy = tokenizer, num_ids, policy
        self.rules = None if policy is None else read_policy(policy)
        self.blocked = () if self.rules is None else self.rules.blocked(tokenizer)
        surface = getattr(tokenizer, "surface", None)
        self.automata = None if surface is None else Automata(len(surface.pieces), slots)
        # An empty row draws nothing: it costs no noise.
        settings = Generation(temperature=0.0, policy=policy)
        neutral = self.row(Request([0], 1, settings), ())
        assert neutral is not None
        self.neutral = neutral

    def row(self, request: Request, ends: Sequence[int]) -> ChainRow | None:
        """Return a request's part, or None where it does not fit; ends: ids that end every text.

        Raises ConfigError for settings that can't be, as `chain_of` does.
        """
        settings = request.settings
        if settings.policy != self.policy or any(
            is_set(settings, names) for names, _ in ORDER if names[0] not in KNOWN
        ):
            return None
        stops = stops_of([settings], self.tokenizer, ends)
        limits, widths = (np.asarray([n], np.int32) for n in (request.limit, len(request.ids)))
        sources = np.asarray([request.ids], np.int32)
        arrays = (stops, limits, sources, widths)
        context = ChainContext(self.tokenizer, self.num_ids, *arrays)
        automaton, structure = None, structure_of(settings)
        if structure is not None:
            automaton = parts_of([settings], context, STRUCTURE)[STRUCTURE[0]]
            if automaton.table.shape[0] > STATES or automaton.table.shape[1] > COLUMNS:
                return None
        parts = parts_of([replace(settings, **FREE)], context, SIZED)
        sized = {name: _sized(part) for name, part in parts.items()}
        stops = _pad("stop", stops)
        if stops is None or None in sized.values():
            return None
        needs = frozenset(
            number
            for number, group in enumerate(GROUPS)
            if any(is_set(settings, names) for names, _ in ORDER if names[0] in group)
        )
        before = text_before(self.tokenizer, request.after) if self.blocked else ""
        filters = tuple(blocked.start(before) for blocked in self.blocked)
        return ChainRow(sized, needs, stops, structure, automaton, request.limit, filters)

    def chain(
        self,
        rows: Sequence[ChainRow],
        starts: Sequence[int],
        filters: Sequence[Sequence[int]],
    ) -> tuple[Chain, Any]:
        """Return (the chain of these rows, its states).

        starts: the state of each row's automaton; filters: those of the policy's tables.
        """
        needed = frozenset[int]().union(*(row.needs for row in rows))
        processors, states = [], []
        for number, group in enumerate(GROUPS):
            if group == STRUCTURE:
                if self.automata is not None:
                    part = self.automata.processor([row.automaton for row in rows])
                    processors.append(When(np.asarray(number in needed), Chain((part,))))
                    states.append((np.asarray(starts, np.int32),))
                continue
            if group == POLICY:
                if self.rules is not None and self.blocked:
                    limits = np.asarray([row.limit for row in rows], np.int32)
                    stops = np.concatenate([row.stops for row in rows])
                    processors.append(self.rules.processor(self.tokenizer, [()], limits, stops))
                    states.append(tuple(np.asarray(filters, np.int32).T))
                continue
            columns = (tuple(row.parts[name] for row in rows) for name in group)
            parts = tuple(jax.tree.map(lambda *x: np.concatenate(x), *column) for column in columns)
            if group == ("temperature",):
                processors += parts
                states.append(None)
            else:
                processors.append(When(np.asarray(number in needed), Chain(parts)))
                states.append((None,) * len(parts))
        return Chain(tuple(processors)), tuple(states)

    def filters_after(self, states: tuple[Any, ...]) -> np.ndarray:
        """Return the states [B, P] of the policy's tables among those of the chain."""
        at = GROUPS.index(POLICY) - (self.automata is None)
        return np.stack(jax.tree.map(np.asarray, states[at]), axis=1)


class Automata:
    """The automata of requests, as one array on the device; equal ones share a place.

    Place 0 is that of requests without a structure. There is one for each slot, so there is always
    room; those that nobody uses stay until then.
    """

    def __init__(self, vocab: int, slots: int) -> None:
        first = resized(free(vocab), STATES, COLUMNS, at=0)
        self._arrays: tuple[Array, Array, Array] = tuple(
            jnp.repeat(jnp.asarray(x), slots + 1, axis=0)
            for x in (first.table, first.classes, first.distance)
        )  # pyright: ignore[reportAttributeAccessIssue]
        self._places: dict[Hashable, int] = {}
        self._users = [1, *[0] * slots]

    def hold(self, row: ChainRow) -> int:
        """Return the first state of a request's automaton, in use until `release`."""
        if row.automaton is None:
            return 0
        place = self._places.get(row.structure)
        if place is None:
            taken = set(self._places.values())
            unused = [p for p, users in enumerate(self._users) if not users]
            place = min(unused, key=lambda p: p in taken)
            self._places = {key: p for key, p in self._places.items() if p != place}
            self._places[row.structure] = place
            new = resized(row.automaton, STATES, COLUMNS, at=place * STATES)
            self._arrays = _put(self._arrays, (new.table, new.classes, new.distance), place)
        self._users[place] += 1
        return place * STATES + int(row.automaton.starts[0])

    def release(self, state: int) -> None:
        """Give up the automaton that has this state."""
        if state:
            self._users[state // STATES] -= 1

    def processor(self, automata: Sequence[Automaton | None]) -> Automaton:
        """Return the processor of rows with these automata."""
        table, classes, distance = self._arrays
        within = [FAR if one is None else int(one.within[0]) for one in automata]
        starts = np.zeros(1, np.int32)
        return Automaton(table, classes, starts, distance, np.asarray(within, np.int32))

    def warm_up(self) -> None:
        """Compile what puts an automaton in its place."""
        sizes = [len(x) // len(self._users) for x in self._arrays]
        first = tuple(np.asarray(x)[:n] for x, n in zip(self._arrays, sizes, strict=True))
        self._arrays = _put(self._arrays, first, 0)


@partial(jax.jit, donate_argnums=0)
def _put(arrays, new, place):
    return tuple(
        lax.dynamic_update_slice_in_dim(x, jnp.asarray(one, x.dtype), place * len(one), 0)
        for x, one in zip(arrays, new, strict=True)
    )


def _sized(part: Any) -> Any:
    """Return a processor of one request with arrays of the sizes of all; None if they are less."""
    about = {one.name: getattr(part, one.name) for one in fields(part) if one.name in SIZES}
    sized = {name: _pad(name, value) for name, value in about.items()}
    return None if any(value is None for value in sized.values()) else replace(part, **sized)


def _pad(name: str, value: np.ndarray) -> np.ndarray | None:
    """Return an array [1, ...] filled up to its size; None if it is larger."""
    sizes, filler = SIZES[name]
    value = np.asarray(value)
    missing = [size - have for size, have in zip(sizes, value.shape[1:], strict=True)]
    if min(missing) < 0:
        return None
    more = [(0, 0), (0, missing[0]), *((n, 0) for n in missing[1:])]  # starts end on the right
    return np.pad(value, more, constant_values=filler)

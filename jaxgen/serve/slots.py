"""Slots: requests that decode side by side as rows of one cache, in chunks of one program.

The cache has as many rows and slots as its requests need, in a few sizes, each compiled once. All
else that a request is, its tokens, settings and counts, is on the host, and goes to the device with
each chunk: a row that joins or leaves changes numbers, never a program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxgen.decoding import snapshots
from jaxgen.decoding.detailed import Decoded
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.ops.cache import Cache, Store
from jaxgen.serve import slot_programs as programs
from jaxgen.serve.prefixes import Prefixes
from jaxgen.serve.slot_chain import GROUPS, STRUCTURE, ChainRow, SlotChain
from jaxgen.serve.tickets import Ticket
from jaxgen.text.batch_decoding import RequestState, begin
from jaxgen.text.batches import Request, request_keys
from jaxgen.text.request import Generation
from jaxgen.text.session import Session

SMALLEST = 256  # tokens of the least capacity; the others double
TOP = 20  # alternatives of a token that are computed, if any request of a chunk wants some
BLOCK = 16  # tokens of a block of the prefix cache: what a prompt has beyond is read again
PATIENCE = 8  # chunks for which a cache is too large before it shrinks


@dataclass(eq=False)
class Running:
    """A text in the engine.

    tokens: [context] its prompt and draws, of which `length` are known; user: whose adapter it has;
    owner: of the weights that read it; read: how many tokens the cache holds; place, automaton: the
    first state of its structure, and the present one; filters: those of its policy's tables.
    """

    ticket: Ticket
    index: int
    state: RequestState
    row: ChainRow
    key: np.ndarray
    tokens: np.ndarray
    length: int
    detail: int | None
    user: str | None = None
    owner: tuple[str, int] | None = None
    cached: int = 0
    read: int = 0
    begun: float = 0.0
    place: int = 0
    automaton: int = 0
    filters: Sequence[int] = ()

    @property
    def prompt(self) -> list[int]:
        """Return the ids of its prompt."""
        return self.state.request.ids

    @property
    def start(self) -> int:
        """Return how many tokens are drawn."""
        return self.length - len(self.prompt)

    @property
    def left(self) -> int:
        """Return how many more tokens it may have."""
        return self.state.request.limit - self.start

    def learn(self, new: Sequence[int]) -> None:
        """Append new tokens."""
        self.tokens[self.length : self.length + len(new)] = new
        self.length += len(new)


class Slots:
    """The rows of up to `count` requests; `context` tokens of a row at most."""

    def __init__(
        self,
        session: Session,
        *,
        count: int,
        context: int,
        chunk: int,
        piece: int,
        store: Store,
        prefix_tokens: int,
        lookup: int,
    ) -> None:
        self.session, self.config, self.count = session, session.config, count
        self.store: Store = store
        piece, self.lookup = min(piece, context), lookup
        self.chunk, self.widths = min(chunk, context), tuple(sorted({max(piece // 4, 1), piece}))
        self.num_ids = min(session.tokenizer.vocab_size, self.config.V)
        self.chain = SlotChain(session.tokenizer, self.num_ids, count, session.policy)
        self.sizes = _doublings(4, count) if count > 2 else []
        self.sizes = sorted({1, *self.sizes, count})
        self._most_new = self.chunk * (lookup + 1) + lookup  # tokens that a chunk writes
        self.capacities = sorted({*_doublings(SMALLEST, context - 1), context + lookup})
        self.unrolled = serving.is_unrolled(session.params)
        self.running: list[Running | None] = []  # of each row
        self.cache: Cache | None = None
        self.capacity, self._idle = 0, 0
        first = self._empty(1, self.capacities[0])
        if lookup:
            try:
                snapshots.check_rewind(first, lookup + 1)
            except ConfigError as error:
                raise ConfigError(f"lookup={lookup}: {error}") from None
        shares = first.full is not None and first.sliding is None and first.state is None
        blocks = prefix_tokens // BLOCK if shares else 0
        self.prefixes = Prefixes(blocks, BLOCK) if blocks else None
        self.pool = self._empty(blocks, BLOCK).full if blocks else None

    @property
    def live(self) -> list[Running]:
        """Return the requests that decode."""
        return [one for one in self.running if one is not None]

    @property
    def is_full(self) -> bool:
        """Return whether no more can join."""
        return len(self.live) == self.count

    def texts(
        self, ticket: Ticket, requests: Sequence[Request], detail: int | None
    ) -> list[Running] | None:
        """Return the texts of a prompt, one for each slot; None if they do not fit into slots."""
        model = self.session.model
        row = None if (detail or 0) > TOP else self.chain.row(requests[0], model.stop)
        if row is None:
            return None
        texts = []
        for index, request in enumerate(requests):
            tokens = np.zeros(self.capacities[-1], np.int32)
            tokens[: len(request.ids)] = request.ids
            about = (ticket, index, begin(model, request), row, _key_words(request), tokens)
            texts.append(Running(*about, len(request.ids), detail, request.user))
        return texts

    def begin(self, one: Running) -> Cache:
        """Return a row of its own for a request, with what the prefix cache holds of its prompt."""
        if one.user is not None:  # its adapter is read now, if it is not there; it may have none
            self._params([one.user])
            one.owner = self._present(one.user)
            one.user = one.owner and one.owner[0]
        needed = max(len(one.prompt) + self._most_new, self.capacity if self.live else 0)
        row = self._empty(1, self._capacity_for(needed))
        if self.prefixes is None or self.pool is None:
            return row
        # The last token is left to the loop, which computes its logits.
        places = self.prefixes.find(one.prompt[:-1], one.owner)
        if places:
            one.cached = one.read = len(places) * BLOCK
            row = programs.load_blocks(row, self.pool, self._padded(places), len(places))
        return row

    def read(self, one: Running, row: Cache) -> Cache:
        """Return the row after another piece of the request's prompt; see `has_read`."""
        left = len(one.prompt) - 1 - one.read
        width = next((w for w in self.widths if w >= left), self.widths[-1])
        tokens = np.zeros((1, width), np.int32)
        count = min(width, left)
        tokens[0, :count] = one.prompt[one.read : one.read + count]
        one.read += count
        counts = np.full(1, count, np.int32)
        params = self._params([one.user])
        return jax.block_until_ready(programs.read_piece(params, self.config, row, tokens, counts))

    def has_read(self, one: Running) -> bool:
        """Return whether the prompt is read, up to its last token."""
        return one.read >= len(one.prompt) - 1

    def join(self, one: Running, row: Cache) -> None:
        """Let a request whose prompt is read decode from the next chunk on."""
        self._save(one, row, 0)
        self._resize(len(self.live) + 1, self._needed(one))
        at = self.running.index(None)
        assert self.cache is not None
        if row.capacity is not None and row.capacity != self.capacity:
            row = programs.fit_row(row, self.capacity)
        self.cache = programs.put_row(self.cache, row, at)
        one.place = one.automaton = 0 if self._automata is None else self._automata.hold(one.row)
        one.filters = one.row.filters
        self.running[at] = one

    def leave(self, one: Running, *, keep: bool = True) -> None:
        """Free a request's row; keep: its tokens may serve other requests as a prefix."""
        at = self.running.index(one)
        if self._automata is not None:
            self._automata.release(one.place)
        if keep and self.cache is not None:
            self._save(one, self.cache, at)
        self.running[at] = None

    def orphans(self) -> list[Running]:
        """Return the requests that decode, but whose user's adapter is gone."""
        return [one for one in self.live if one.user and one.owner != self._present(one.user)]

    def decode(self, steps: int) -> tuple[Any, list[tuple[int, Running]]]:
        """Return (a Decoded on the host, (its row, request) of each) after `steps` at most."""
        self._resize(len(self.live), self._needed())
        rows = [one.row if one else self.chain.neutral for one in self.running]
        automata = [one.automaton if one else 0 for one in self.running]
        filters = [one.filters if one else self.chain.neutral.filters for one in self.running]
        sample, states = self.chain.chain(rows, automata, filters)
        wanted = np.asarray(any(one.detail is not None for one in self.live))
        outputs = self._decode(self._rows(rows), sample, states, wanted, np.int32(steps))
        members = [(at, one) for at, one in enumerate(self.running) if one is not None]
        if self._automata is not None:
            after = np.asarray(outputs.states[GROUPS.index(STRUCTURE)][0])
            for at, one in members:
                one.automaton = int(after[at])
        if self.chain.blocked:
            filters = self.chain.filters_after(outputs.states)
            for at, one in members:
                one.filters = filters[at].tolist()
        return jax.tree.map(np.asarray, outputs.without_cache()), members

    def _decode(self, rows: programs.SlotRows, *chain: Any) -> Decoded:
        assert self.cache is not None
        params = self._params([one and one.user for one in self.running])
        read = (params, self.config, self.num_ids, self.cache, rows, *chain)
        sizes = {"length": self.chunk, "top": TOP, "ahead": self.lookup}
        found, self.cache = programs.decode_rows(*read, **sizes)
        return found

    def _params(self, users: Sequence[str | None]) -> Any:
        """Return the parameters for rows of these users."""
        known, params = self.session.users, self.session.params
        return params if known is None else known.params(params, users)

    def _present(self, user: str) -> tuple[str, int] | None:
        """Return the user and which reading of their adapter is in memory; None if none is."""
        users = self.session.users
        return (user, users.serials[user]) if users and user in users.serials else None

    def _rows(self, rows: Sequence[ChainRow]) -> programs.SlotRows:
        arrays = programs.SlotRows(
            tokens=np.zeros((len(rows), self.capacity), np.int32),
            lengths=np.ones(len(rows), np.int32),
            start=np.zeros(len(rows), np.int32),
            limits=np.zeros(len(rows), np.int32),
            stops=np.concatenate([row.stops for row in rows]),
            keys=np.zeros((len(rows), 2), np.uint32),
        )
        for at, one in enumerate(self.running):
            if one is not None:
                arrays.tokens[at, : one.length] = one.tokens[: one.length]
                arrays.lengths[at], arrays.start[at] = one.length, one.start
                arrays.limits[at], arrays.keys[at] = one.start + one.left, one.key
        return arrays

    def _needed(self, *more: Running) -> int:
        return max((one.length for one in (*self.live, *more)), default=0) + self._most_new

    def _capacity_for(self, tokens: int) -> int:
        return next((c for c in self.capacities if c >= tokens), self.capacities[-1])

    def _resize(self, rows: int, tokens: int) -> None:
        """Make room for so many rows and tokens; a cache that is long too large shrinks."""
        size = next(n for n in self.sizes if n >= rows)
        capacity = self._capacity_for(tokens)
        if self.cache is None or not self.live:
            if self.cache is None or (size, capacity) != (len(self.running), self.capacity):
                self.cache, self.capacity = self._empty(size, capacity), capacity
            self.running = [None] * size
            return
        grows = size > len(self.running) or capacity > self.capacity
        smaller = size < len(self.running) or capacity < self.capacity
        self._idle = self._idle + 1 if smaller and not grows else 0
        if grows:
            size, capacity = max(size, len(self.running)), max(capacity, self.capacity)
        elif self._idle < PATIENCE:
            return
        self._idle = 0
        cache = self._empty(size, capacity)
        live = [(at, one) for at, one in enumerate(self.running) if one is not None]
        for new, (at, _) in enumerate(live):
            row = programs.take_row(self.cache, at)
            row = row if capacity == self.capacity else programs.fit_row(row, capacity)
            cache = programs.put_row(cache, row, new)
        self.cache, self.capacity = cache, capacity
        self.running = [*(one for _, one in live), *[None] * (size - len(live))]

    def _save(self, one: Running, cache: Cache, at: int) -> None:
        if self.prefixes is None or self.pool is None:
            return
        known = one.tokens[: one.length - 1].tolist()  # the cache does not hold the last one yet
        begins, places = self.prefixes.add(known, one.owner)
        if places:
            about = (self._padded(begins), self._padded(places), len(places))
            self.pool = programs.save_blocks(self.pool, cache, at, *about)

    def _padded(self, numbers: Sequence[int]) -> np.ndarray:
        padded = np.zeros(self.capacities[-1] // BLOCK + 1, np.int32)
        padded[: len(numbers)] = numbers
        return padded

    def _empty(self, rows: int, capacity: int) -> Cache:
        return programs.empty_rows(self.config, rows, capacity, self.store, self.unrolled)

    @property
    def _automata(self):
        return self.chain.automata

    def warm_up(self) -> Iterator[str]:
        """Compile every program that serving takes, saying which before each."""
        assert not self.live
        rows = {capacity: self._empty(1, capacity) for capacity in self.capacities}
        if self._automata is not None:
            self._automata.warm_up()
        if self.session.users is not None:
            self.session.users.warm_up()
        padded = self._padded(())
        for capacity in self.capacities:
            for width in self.widths:
                yield f"prompts in pieces of {width} tokens, {capacity} tokens of a row"
                one = (np.zeros((1, width), np.int32), np.ones(1, np.int32))
                row = self._empty(1, capacity)
                programs.read_piece(self._params([None]), self.config, row, *one)
            for other in self.capacities:
                if other != capacity:
                    programs.fit_row(rows[capacity], other)
            if self.pool is not None:
                programs.load_blocks(self._empty(1, capacity), self.pool, padded, 0)
            for size in self.sizes:
                yield f"chunks of {size} rows, {capacity} tokens of a row"
                self.cache, self.capacity = self._empty(size, capacity), capacity
                self.running = [None] * size
                neutral = [self.chain.neutral] * size
                filters = [self.chain.neutral.filters] * size
                chained = self.chain.chain(neutral, [0] * size, filters)
                about = (self._rows(neutral), *chained, np.asarray(False), np.int32(1))
                jax.block_until_ready(self._decode(*about))
                self.cache = programs.put_row(self.cache, rows[capacity], 0)
                programs.take_row(self.cache, 0)
                if self.pool is not None:
                    save = (self.cache, 0, padded, padded, 0)
                    self.pool = programs.save_blocks(self.pool, *save)
        self.cache, self.capacity, self.running = None, 0, []
        _key_words(Request([0], 1, Generation()))


def _key_words(request: Request) -> np.ndarray:
    return np.asarray(jax.random.key_data(request_keys([request])))[0]


def _doublings(smallest: int, largest: int) -> list[int]:
    sizes = [smallest]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return [size for size in sizes if size <= largest]

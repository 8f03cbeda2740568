"""Batches of a shard, endless and shuffled or once in order; grain does the order and the wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxgen.data.pack import Batch, share
from jaxgen.data.parallel import watch_parent
from jaxgen.data.pump import Pump
from jaxgen.data.random import hash_seed, permuted, stream_keys
from jaxgen.data.rows import AS_IT_LIES, Maker, Rows, causal
from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError, DataError

FORMAT = 2
AHEAD = 4  # batches that wait, made, for the training step
STEPS = 1 << 40  # as good as endless
MANY = 1 << 24  # rows of an epoch from which on grain's shuffle, 22 us a row, is not ours
PATIENCE = 120.0  # seconds without a batch after which the workers are taken for lost


class Order:
    """Step -> batch: a pure function of seed and step, whoever computes it.

    An epoch is a permutation of the rows; what the objective draws for one depends on seed, epoch
    and place alone.
    """

    def __init__(
        self, rows: Rows, batch: int, seed: int, process: tuple[int, int], repeat: int = 1
    ) -> None:
        self.rows, self.batch, self.seed, self.repeat = rows, batch, seed, repeat
        self.count, self.mine = rows.count, share(batch, process)
        if self.count < MANY:
            import grain

            # grain takes 32 bits of seed; ours may have 63, and neighbours should not share epochs.
            seeded = grain.MapDataset.range(self.count).seed(hash_seed(seed, 0))
            self._order = seeded.shuffle().repeat()

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Batch:
        first = index // self.repeat * self.batch
        places = np.arange(first + self.mine.start, first + self.mine.stop, dtype=np.int64)
        return self.rows.batch(
            self._rows_at(places), places // self.count, stream_keys(self.seed, places)
        )

    def _rows_at(self, places: np.ndarray) -> np.ndarray:
        """Return which row comes at each place of the endless order."""
        if self.count < MANY:
            return np.asarray([self._order[int(place)] for place in places], np.int64)
        epochs, rows = places // self.count, places % self.count
        for epoch in np.unique(epochs):
            now = epochs == epoch
            rows[now] = permuted(rows[now], self.count, hash_seed(self.seed, int(epoch) + 1))
        return rows


@runtime_checkable
class Steps(Protocol):
    """Step -> batch, as `Order` is; `count`: rows of an epoch, `repeat`: steps with one batch."""

    @property
    def rows(self) -> Rows: ...
    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def repeat(self) -> int: ...
    @property
    def count(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Batch: ...


class Batches:
    """An endless iterator of batches; see `batches`."""

    def __init__(self, order: Steps, context: int, *, start: int, workers: int) -> None:
        self._order, self._workers, self._step = order, workers, start
        self._context = context
        self._stream: Any = None
        self._closed = False
        self.then: Callable[[Batch], Batch] = lambda batch: batch  # done to each before it is given

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; DataError if the shard changed or a worker died."""
        if self._closed:
            raise ConfigError("the batches are closed; make new ones")
        self._order.rows.shard.check_unchanged()
        if self._stream is None:
            self._stream = _stream(self._order, self._step, self._workers)
        try:
            batch = next(self._stream)
        except BaseException as error:
            self.close()
            # grain says RuntimeError of a dead worker; the rest is of a pipe it died holding.
            if not self._workers or not isinstance(error, RuntimeError | OSError | EOFError):
                raise
            raise DataError(
                f"a process that makes batches died at step {self._step} ({error}); start again, "
                f"with data.workers=0 if memory is short"
            ) from error
        self._step += 1
        return self.then(batch)

    @property
    def rows(self) -> Rows:
        """The rows that an epoch consists of."""
        return self._order.rows

    @property
    def epoch(self) -> int:
        """Return how many batches show every row once, the last one also some of the next."""
        return -(-self._order.count // self._order.batch) * self._order.repeat

    def state(self) -> dict[str, Any]:
        """Return the position and what it is a position in, as JSON-able data for `restore`."""
        order = self._order
        return {
            "format": FORMAT,
            "step": self._step,
            "seed": order.seed,
            "batch": order.batch,
            "context": self._context,
            "tokens": order.rows.shard.digest,
            "objective": order.rows.name,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a state; any number of processes and workers may have made it.

        Raises DataError if it is of another seed, batch, context or text, naming which.
        """
        step, own = state.get("step"), self.state()
        state = {"objective": "causal"} | state  # there was no other once
        if state.get("format") == 1 and self._order.count < MANY:
            # It told tokens by the sha256 of their file.
            own |= {"format": 1, "tokens": self._order.rows.shard.checksum}
        for name, label in NAMES.items():
            if state.get(name) != own[name]:
                raise DataError(
                    f"the data position was saved with {label}={state.get(name)!r}, not "
                    f"{own[name]!r}; go on with what it was saved with, or start a new run"
                )
        if type(step) is not int or not 0 <= step < STEPS:
            raise DataError(f"the data position has step={step!r}; the checkpoint is damaged")
        self._stop()
        self._step = step

    def close(self) -> None:
        """Stop threads and workers; closing twice is fine."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


NAMES = {
    "format": "data.format",
    "seed": "train.seed",
    "batch": "train.batch",
    "context": "model.context",
    "tokens": "data (digest of the training tokens)",
    "objective": "objective",
}


def batches(
    shard: TokenShard,
    *,
    context: int,
    batch: int,
    seed: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    objective: Maker = causal,
    repeat: int = 1,
) -> Batches:
    """Return endless batches, as the objective makes them, beginning at step `start`.

    batch: rows over all processes; process: (index, count), this one's share of each batch.
    workers: processes that make batches; with 0, a thread does. repeat: steps in a row that have
    the same batch. The batch of a step is the same
    for any of them. Raises DataError for a shard too small for one row.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed} must be in [0, 2^63)")
    if start < 0:
        raise ConfigError(f"start={start} must be 0 or more")
    rows = objective(shard, context=context, seed=seed, ordered=False)
    return Batches(Order(rows, batch, seed, process, repeat), context, start=start, workers=workers)


def in_order(
    shard: TokenShard,
    *,
    context: int,
    batch: int,
    limit: int | None = None,
    process: tuple[int, int] = (0, 1),
    objective: Maker = causal,
) -> Iterator[Batch]:
    """Yield the whole split once, row after row; the last batch is filled up with weight 0.

    limit: at most so many batches. What an objective draws is the same each time. Raises DataError
    for a split with nothing to predict.
    """
    rows = objective(shard, context=context, seed=0, ordered=True)
    mine = share(batch, process)
    number = -(-rows.count // batch)
    for step in range(number if limit is None else min(limit, number)):
        shard.check_unchanged()
        row = np.arange(step * batch + mine.start, step * batch + mine.stop, dtype=np.int64)
        epochs = np.full_like(row, AS_IT_LIES)
        yield rows.batch(np.where(row < rows.count, row, -1), epochs, stream_keys(0, row))


def _stream(order: Steps, start: int, workers: int) -> Any:
    import grain

    _parse_flags()
    steps = grain.MapDataset.source(order)[start:]
    if not workers:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        return iter(steps.to_iter_dataset(options))
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = steps.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=partial(_watched, os.getpid()),
    )
    return Pump(iter(dataset), PATIENCE)


def _watched(parent: int, index: int, count: int) -> None:
    # A terminal's Ctrl-C, and many schedulers, tell all processes to stop; how, the parent knows.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watch_parent(parent)


def _parse_flags() -> None:
    # grain's workers read absl flags, which only an absl program has parsed.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

"""Batches of a shard, endless and shuffled or once in order; grain does the order and the wait."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from jaxgen.data.pack import Batch, check_room, cut, rows_per_epoch, share
from jaxgen.data.parallel import watch_parent
from jaxgen.data.pump import Pump
from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError, DataError

FORMAT = 1
AHEAD = 4  # batches that wait, made, for the training step
STEPS = 1 << 40  # as good as endless
PATIENCE = 120.0  # seconds without a batch after which the workers are taken for lost


class Order:
    """Step -> batch: a pure function of seed and step, whoever computes it.

    An epoch is a permutation of the rows; each begins its rows at another, random token, so that
    a text is not always cut at the same places.
    """

    def __init__(
        self, shard: TokenShard, context: int, batch: int, seed: int, process: tuple[int, int]
    ) -> None:
        import grain

        self.shard, self.context, self.batch, self.seed = shard, context, batch, seed
        self.rows, self.mine = rows_per_epoch(shard, context), share(batch, process)
        if self.rows >= 2**32:
            raise ConfigError(f"context={context} makes {self.rows} rows; at most 2^32 - 1 work")
        # grain takes 32 bits of seed; ours may have 63, and neighbours should not share epochs.
        self._order = grain.MapDataset.range(self.rows).seed(_hashed(seed, 0)).shuffle().repeat()

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Batch:
        count = len(self.shard.tokens)
        first = index * self.batch + self.mine.start
        places = range(first, index * self.batch + self.mine.stop)
        rows = np.asarray([self._order[place] for place in places], np.int64)
        epochs = np.asarray([place // self.rows for place in places], np.int64)
        offsets = {epoch: self.offset(int(epoch)) for epoch in np.unique(epochs)}
        shift = np.asarray([offsets[epoch] for epoch in epochs], np.int64)
        starts = shift + rows * self.context
        # The row that ends an epoch stops where the first began, so no token counts twice.
        batch = cut(self.shard, starts, shift + count + 1, self.context)
        return batch | {"index": starts % count}

    def offset(self, epoch: int) -> int:
        """Return the token at which the rows of an epoch begin."""
        return _hashed(self.seed, epoch + 1) % len(self.shard.tokens)


class Batches:
    """An endless iterator of batches; see `batches`."""

    def __init__(self, order: Order, *, start: int, workers: int) -> None:
        self._order, self._workers, self._step = order, workers, start
        self._stream: Any = None
        self._closed = False

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; DataError if the shard changed or a worker died."""
        if self._closed:
            raise ConfigError("the batches are closed; make new ones")
        self._order.shard.check_unchanged()
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
        return batch

    def state(self) -> dict[str, Any]:
        """Return the position and what it is a position in, as JSON-able data for `restore`."""
        order = self._order
        return {
            "format": FORMAT,
            "step": self._step,
            "seed": order.seed,
            "batch": order.batch,
            "context": order.context,
            "tokens": order.shard.digest,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a state; any number of processes and workers may have made it.

        Raises DataError if it is of another seed, batch, context or text, naming which.
        """
        step, own = state.get("step"), self.state()
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
    "tokens": "data (sha256 of the training tokens)",
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
) -> Batches:
    """Return endless batches, as `pack.cut` makes them, beginning at step `start`.

    batch: rows over all processes; process: (index, count), this one's share of each batch.
    workers: processes that make batches; with 0, a thread does. The batch of a step is the same
    for any of them. Raises DataError for a shard too small for one row.
    """
    check_room(shard, context, whole_row=True)
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed} must be in [0, 2^63)")
    if start < 0:
        raise ConfigError(f"start={start} must be 0 or more")
    order = Order(shard, context, batch, seed, process)
    return Batches(order, start=start, workers=workers)


def in_order(
    shard: TokenShard,
    *,
    context: int,
    batch: int,
    limit: int | None = None,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield the whole split once, row after row; the last batch is filled up with weight 0.

    limit: at most so many batches. Raises DataError for a split with nothing to predict.
    """
    check_room(shard, context, whole_row=False)
    mine, count = share(batch, process), len(shard.tokens)
    rows = -(-(count - 1) // context)
    number = -(-rows // batch)
    for step in range(number if limit is None else min(limit, number)):
        shard.check_unchanged()
        row = np.arange(step * batch + mine.start, step * batch + mine.stop, dtype=np.int64)
        starts = row * context
        # Starts of padding lie beyond the end; they are folded back, and weigh nothing.
        ends = np.where(row < rows, count, 0).astype(np.int64)
        yield cut(shard, np.where(row < rows, starts, 0), ends, context)


def _hashed(seed: int, number: int) -> int:
    raw = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(raw[:4], "big")


def _stream(order: Order, start: int, workers: int) -> Any:
    import grain

    _parse_flags()
    steps = grain.MapDataset.source(order)[start:]
    if not workers:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        return iter(steps.to_iter_dataset(options))
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    made = steps.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=partial(_watched, os.getpid()),
    )
    return Pump(iter(made), PATIENCE)


def _watched(parent: int, index: int, count: int) -> None:
    watch_parent(parent)


def _parse_flags() -> None:
    # grain's workers read absl flags, which only an absl program has parsed.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

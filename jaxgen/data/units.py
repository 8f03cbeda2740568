"""Rows of which each belongs to one unit of privacy, and batches that draw units by chance.

What a step reads of a unit depends on seed, step and that unit alone: no other unit's presence
moves it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.loader import STEPS, Batches
from jaxgen.data.pack import Batch, check_room, cut, share
from jaxgen.data.pairs import Packed
from jaxgen.data.random import stream_keys, uniform
from jaxgen.data.rows import AS_IT_LIES, Maker, NextTokens, Rows
from jaxgen.data.shard import TokenShard, regroup
from jaxgen.errors import ConfigError, DataError

Unit = Literal["document", "file", "row", "user"]


@dataclass(frozen=True, eq=False)
class Spans:
    """One row of each span of the shard: `width` tokens of it, from a random place if it is longer.

    begins, ends: tokens of each span. An empty span, or one of a single token, weighs nothing.
    """

    shard: TokenShard
    width: int
    name: str
    begins: np.ndarray
    ends: np.ndarray

    @property
    def count(self) -> int:
        """Spans."""
        return len(self.begins)

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return `pack.cut` of a row of each span; -1 is padding."""
        real = rows >= 0
        begins, ends = np.where(real, self.begins[rows], 0), np.where(real, self.ends[rows], 0)
        places = np.maximum(ends - begins - self.width, 1)  # where a row may begin
        starts = begins + (uniform(keys, 1, stream=0)[:, 0] * places).astype(np.int64)
        return cut(self.shard, starts, ends, self.width)


class Poisson:
    """Step -> batch of the units drawn for it, each with chance `rate`, padded to `batch` rows.

    Where more are drawn than fit, a random subset of them is taken. All of it is a pure function
    of the seed and the step, drawn by SHAKE-256, which tells nothing of one step by another.
    """

    repeat = 1

    def __init__(
        self, rows: Rows, rate: float, batch: int, seed: int, process: tuple[int, int]
    ) -> None:
        self.rows, self.rate, self.batch, self.seed = rows, rate, batch, seed
        self.count, self.mine = rows.count, share(batch, process)

    def __len__(self) -> int:
        return STEPS

    def units(self, step: int) -> Int[np.ndarray, "N"]:
        """Return the units of a step, `batch` of them at most."""
        raw = hashlib.shake_256(f"poisson {self.seed} {step}".encode()).digest(8 * self.count)
        draws = np.frombuffer(raw, "<u8")
        drawn = np.flatnonzero(draws < np.uint64(min(self.rate * 2.0**64, 2**64 - 1)))
        if len(drawn) > self.batch:  # given that they are below the rate, draws are uniform there
            drawn = np.sort(drawn[np.argsort(draws[drawn], kind="stable")[: self.batch]])
        return drawn

    def __getitem__(self, index: int) -> Batch:
        units = self.units(index)
        padded = np.full(self.batch, -1, np.int64)
        padded[: len(units)] = units
        # A drawn unit's key is its own, wherever in the batch it lies.
        keys = stream_keys(self.seed, index * self.count + np.maximum(padded, 0))
        epochs = np.full(self.batch, AS_IT_LIES)
        mine = self.mine
        return self.rows.batch(padded[mine], epochs[mine], keys[mine])


def unit_rows(objective: Maker, shard: TokenShard, *, context: int, seed: int, unit: Unit) -> Rows:
    """Return rows of which each holds text of one unit alone.

    Raises:
        ConfigError: for an objective whose rows mix several records, or have no such unit.
        DataError: for a text with nothing to predict.
    """
    rows = objective(shard, context=context, seed=seed, ordered=True)
    if isinstance(rows, NextTokens):
        check_room(shard, context, whole_row=False)
        if unit == "user":
            shard, begins, ends = by_user(shard)
        else:
            begins, ends = SPANS[unit](shard, context)
        return Spans(shard, context, f"private {unit}", begins, ends)
    if unit != "document":
        raise ConfigError(
            f"train.privacy.unit={unit} needs objective.name=causal; with records give document, "
            f"which is a record"
        )
    if isinstance(rows, Packed):
        every = np.arange(rows.lengths.shape[1] + 1)
        packed: Any = rows
        return replace(packed, order=every[:-1], ends=every, name=f"private {packed.name}")
    if rows.name == "classes":
        return rows
    raise ConfigError(
        f"train.privacy doesn't cover the rows of this objective ({rows.name}), which mix several "
        f"records; take objective.name=causal, chat, pairs or classes"
    )


def _documents(shard: TokenShard, width: int) -> tuple[np.ndarray, np.ndarray]:
    offsets = shard.offsets.astype(np.int64)
    return offsets[:-1], offsets[1:]


def _files(shard: TokenShard, width: int) -> tuple[np.ndarray, np.ndarray]:
    runs = _runs(shard, "sources")
    names = [name for name, _ in runs]
    if len(set(names)) != len(names):
        path = shard.path.with_suffix(".sources.json")
        raise DataError(f"{path} has documents of one file in several places; take unit=document")
    ends = np.cumsum([count for _, count in runs])
    offsets = shard.offsets.astype(np.int64)
    return offsets[np.concatenate([[0], ends[:-1]])], offsets[ends]


def by_user(shard: TokenShard) -> tuple[TokenShard, np.ndarray, np.ndarray]:
    """Return (the shard with each user's documents in a row, where each begins, and ends).

    Users are in order of name. Raises DataError where it isn't known whose documents are.
    """
    runs = _runs(shard, "users")
    whose = np.repeat([name for name, _ in runs], [count for _, count in runs])
    order = np.argsort(whose, kind="stable")
    own = regroup(shard, order)
    _, first = np.unique(whose[order], return_index=True)
    ends = own.offsets.astype(np.int64)
    begins = ends[first]
    return own, begins, np.append(begins[1:], ends[-1])


def _runs(shard: TokenShard, what: str) -> list[list]:
    """Return [name, documents of it in a row]s of a shard."""
    path = shard.path.with_suffix(f".{what}.json")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} doesn't say whose a document is: {error}; remove its folder to write it anew"
        ) from error


def _rows(shard: TokenShard, width: int) -> tuple[np.ndarray, np.ndarray]:
    # A row reads one token more than it has places: the target of the last.
    begins = np.arange(0, len(shard.tokens), width + 1)
    return begins, np.minimum(begins + width + 1, len(shard.tokens))


SPANS = {"document": _documents, "file": _files, "row": _rows}


def poisson_batches(
    rows: Rows,
    *,
    context: int,
    rate: float,
    batch: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Batches:
    """Return endless batches of units drawn by chance, as `batches` returns them.

    rate: chance of each unit in each step, in (0, 1]. batch: rows, with padding.
    """
    order = Poisson(rows, rate, batch, seed, process)
    return Batches(order, context, start=0, workers=workers)

"""Rounds of federated training: which clients train, and on which windows of their text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxgen.data.loader import Batches
from jaxgen.data.pack import Batch, cut, share
from jaxgen.data.random import order, stream_keys, uniform
from jaxgen.data.units import Poisson, Spans
from jaxgen.errors import ConfigError

LOST = "lost"  # of a batch: [B], 1 where the client of a row is lost before its part arrives


@dataclass(frozen=True, eq=False)
class Clients(Spans):
    """The text of each client; asked: how many are asked for a round."""

    asked: int = 0

    def notes(self) -> list[str]:
        """Return what a reader should know of the clients before training."""
        windows = -(-(self.ends - self.begins) // self.width)
        return [
            f"federated: {self.asked} of {self.count:,} clients a round, with {windows.min()} to "
            f"{windows.max()} windows of {self.width} tokens each"
        ]


class Rounds(Poisson):
    """Step -> batch of `each` windows of each client that is drawn for it, and whether it is lost.

    A client's windows are different ones; one that has fewer gets padding. All of it is a pure
    function of seed and step; where all clients have chance 1, exactly `clients` are drawn.
    """

    def __init__(
        self,
        rows: Clients,
        rate: float,
        each: int,
        lost: float,
        seed: int,
        process: tuple[int, int],
    ) -> None:
        super().__init__(rows, rate, rows.asked, seed, (0, 1))
        self.clients = rows
        self.each, self.lost, self.mine = each, lost, share(rows.asked * each, process)

    def __getitem__(self, index: int) -> Batch:
        users = self.units(index)
        keys = stream_keys(self.seed, index * self.count + users)
        starts = np.full((self.batch, self.each), -1, np.int64)
        for place, user in enumerate(users):
            begin, end = self.clients.begins[user], self.clients.ends[user]
            windows = -(-(end - begin) // self.clients.width)
            chosen = order(keys[place : place + 1], int(windows), stream=0)[0, : self.each]
            starts[place, : len(chosen)] = begin + chosen * self.clients.width
        padded = np.zeros(self.batch, np.int64)
        padded[: len(users)] = self.clients.ends[users]
        lost = np.zeros(self.batch, np.float32)
        lost[: len(users)] = uniform(keys, 1, stream=1)[:, 0] < self.lost
        starts = starts.reshape(-1)[self.mine]
        ends = np.where(starts < 0, 0, np.repeat(padded, self.each)[self.mine])
        batch = cut(self.clients.shard, np.maximum(starts, 0), ends, self.clients.width)
        return batch | {LOST: np.repeat(lost, self.each)[self.mine]}


def round_batches(
    rows: Spans,
    *,
    clients: int,
    each: int,
    rate: float,
    lost: float,
    seed: int,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Batches:
    """Return endless batches of rounds, as `batches` returns them.

    rows: of `unit_rows`, the text of each client. clients: most of a round; each: rows of one.
    rate: chance of each client in each round; 1: exactly `clients` of them. lost: chance of one
    that is drawn to be lost. Raises ConfigError for fewer clients than are asked.
    """
    if clients > rows.count:
        raise ConfigError(
            f"train.federated.clients={clients} must be at most {rows.count}, the users of the "
            f"training text (data.user)"
        )
    own = Clients(rows.shard, rows.width, "clients", rows.begins, rows.ends, clients)
    return Batches(Rounds(own, rate, each, lost, seed, process), rows.width, start=0,
                   workers=workers)  # fmt: skip

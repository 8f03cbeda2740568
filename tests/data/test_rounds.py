"""Rounds: which clients are drawn, and that each trains on different windows of its own text."""

import numpy as np
import pytest

from jaxgen.data import round_batches
from jaxgen.data.rounds import Clients, Rounds
from jaxgen.data.shard import ShardWriter, open_shard
from jaxgen.data.units import Spans
from jaxgen.errors import ConfigError

SIZES = [30, 4, 0, 55, 17, 9]  # tokens of each client; token n of client c is 60 * c + n


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rounds") / "train.bin"
    writer = ShardWriter(path, vocab_size=400, tokenizer="t")
    ids = np.concatenate([60 * c + np.arange(n) for c, n in enumerate(SIZES)])
    writer.add(ids.astype(np.uint32), SIZES, 100)
    writer.close()
    ends = np.cumsum(SIZES)
    return Spans(open_shard(path), 5, "user", ends - SIZES, ends)


def rounds(rows, *, clients=3, each=4, rate=1.0, lost=0.0, process=(0, 1)):
    own = Clients(rows.shard, rows.width, "clients", rows.begins, rows.ends, clients)
    return Rounds(own, rate, each, lost, 7, process)


def test_as_many_clients_as_are_asked_train_each_as_likely(rows):
    order = rounds(rows)
    drawn = np.stack([np.isin(np.arange(6), order.units(step)) for step in range(2000)])
    assert (drawn.sum(axis=1) == 3).all()
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 4 * (0.25 / 2000) ** 0.5


def test_windows_are_of_one_client_different_ones_and_padded_where_there_are_few(rows):
    order = rounds(rows)
    for step in range(40):
        batch, users = order[step], order.units(step)
        for place, user in enumerate(users):
            own = slice(4 * place, 4 * place + 4)
            shown = batch["tokens"][own][batch["segments"][own] > 0]
            assert set((shown // 60).tolist()) <= {user}
            assert len(set(shown.tolist())) == len(shown)
            assert (batch["index"][own] >= 0).sum() <= min(4, -(-SIZES[user] // 5))
            # A client of so few windows shows all of its text but the last token, in one round.
            if 1 < SIZES[user] <= 20:
                assert batch["weights"][own].sum() == SIZES[user] - 1


def test_rounds_are_a_function_of_the_step_and_alike_for_any_processes(rows):
    whole = rounds(rows, clients=4, lost=0.4)
    parts = [rounds(rows, clients=4, lost=0.4, process=(i, 2)) for i in range(2)]
    for step in (0, 5, 1000):
        first, second = parts[0][step], parts[1][step]
        for name, x in whole[step].items():
            np.testing.assert_array_equal(x, np.concatenate([first[name], second[name]]))
    lost = np.concatenate([whole[step]["lost"].reshape(4, 4) for step in range(500)])
    assert (lost == lost[:, :1]).all()  # a client is lost with all its rows
    assert abs(lost.mean() - 0.4) < 0.05


def test_clients_drawn_by_chance_may_be_fewer(rows):
    order = rounds(rows, clients=5, rate=0.3)
    batch = order[3]
    count = len(order.units(3))
    assert count < 5
    assert not batch["weights"][4 * count :].any() and not batch["lost"][4 * count :].any()


def test_more_clients_than_there_are_is_refused(rows):
    with pytest.raises(ConfigError, match="clients=9 must be at most 6"):
        round_batches(rows, clients=9, each=1, rate=1.0, lost=0.0, seed=0)

"""Rows of one unit of privacy each, and batches that draw them by chance."""

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest

from jaxgen.data import DataSettings, poisson_batches, prepare, unit_rows
from jaxgen.data.canaries import CanarySettings
from jaxgen.data.random import stream_keys
from jaxgen.data.rows import causal
from jaxgen.data.shard import ShardWriter, open_shard, regroup
from jaxgen.data.units import Poisson
from jaxgen.errors import ConfigError, DataError
from jaxgen.files import write_json
from jaxgen.tokens.plain import Bytes


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Documents of lengths 3, 40, 1, 9 and 25; token n of document d is 50 * d + n."""
    path = tmp_path_factory.mktemp("units") / "train.bin"
    writer = ShardWriter(path, vocab_size=300, tokenizer="t")
    lengths = [3, 40, 1, 9, 25]
    ids = np.concatenate([50 * d + np.arange(n) for d, n in enumerate(lengths)])
    writer.add(ids.astype(np.uint32), lengths, 100)
    writer.close()
    write_json(path.with_suffix(".sources.json"), [["anna.txt", 2], ["ben.txt", 3]])
    write_json(path.with_suffix(".users.json"), [["a", 1], ["b", 1], ["a", 1], ["b", 2]])
    return open_shard(path)


def rows_of(shard, unit):
    return unit_rows(causal, shard, context=8, seed=0, unit=unit)


def taken(batch, row):
    """Return the tokens that a row shows or predicts."""
    targets = batch["targets"][row][batch["weights"][row] > 0]
    return {*batch["tokens"][row][batch["segments"][row] > 0].tolist(), *targets.tolist()}


def test_a_row_holds_text_of_its_own_unit_alone(shard):
    for unit, owner in (
        ("document", lambda t: t // 50),
        ("file", lambda t: t // 50 > 1),
        ("user", lambda t: t // 50 in (1, 3, 4)),  # whose documents lie in several places
    ):
        rows = rows_of(shard, unit)
        assert rows.count == {"document": 5, "file": 2, "user": 2}[unit]
        keys = stream_keys(3, np.arange(200))
        numbers = np.arange(200) % rows.count
        batch = rows.batch(numbers, np.full(200, -1), keys)
        for i, number in enumerate(numbers):
            assert {int(owner(t)) for t in taken(batch, i)} <= {int(number)}
        first = {int(batch["tokens"][i, 0]) for i in np.flatnonzero(numbers == 1)}
        if unit == "user":  # any part of any document of theirs
            assert {t // 50 for t in first} == {1, 3, 4}
        if unit == "document":  # any part of a long one
            assert first <= set(range(50, 50 + 40 - 8)) and len(first) > 15


def test_a_regrouped_shard_is_the_same_in_another_process(shard):
    own = regroup(shard, np.array([3, 0, 4, 1, 2]))
    other = pickle.loads(pickle.dumps(own))
    documents = np.split(np.asarray(other.tokens), other.offsets[1:-1].astype(int))
    assert [int(d[0]) // 50 for d in documents] == [3, 0, 4, 1, 2]
    assert [len(d) for d in documents] == [9, 3, 25, 40, 1]
    np.testing.assert_array_equal(own.tokens, other.tokens)


@pytest.mark.parametrize(
    ("user", "runs"),
    [
        ("by", [["ann", 1], ["bob", 1], ["ann", 1]]),
        ("file", [["x/a.jsonl", 2], ["y/b.jsonl", 1]]),
        ("folder", [["x", 2], ["y", 1]]),
    ],
)
def test_whose_a_document_is_comes_from_its_field_file_or_folder(tmp_path, user, runs):
    lines = {"x/a.jsonl": ["ann", "bob"], "y/b.jsonl": ["ann"]}
    for name, users in lines.items():
        (tmp_path / name).parent.mkdir()
        rows = [json.dumps({"text": "some words", "by": one}) for one in users]
        (tmp_path / name).write_text("\n".join(rows))
    settings = DataSettings(
        files=(f"{tmp_path}/*/*.jsonl",), user=user, valid_fraction=0.0, test_fraction=0.0,
        canaries=CanarySettings(number=1, rate=1.0),
    )  # fmt: skip
    corpus = prepare(settings, Bytes(), tmp_path / "cache")
    path = corpus.train.path.with_suffix(".users.json")
    found = [[n.removeprefix(f"{tmp_path}/"), c] for n, c in json.loads(path.read_text())]
    assert found == [*runs, ["canary 0", 1]]


def test_users_of_plain_text_are_files_or_folders(tmp_path):
    (tmp_path / "a.txt").write_text("some words")
    settings = DataSettings(files=(f"{tmp_path}/a.txt",), user="author")
    with pytest.raises(ConfigError, match="user=author is a field of records, but"):
        prepare(settings, Bytes(), tmp_path / "cache")


def test_rows_share_no_token_and_leave_none_out(shard):
    rows = rows_of(shard, "row")
    batch = rows.batch(np.arange(rows.count), np.full(rows.count, -1), np.zeros(rows.count, "u8"))
    shown = [token for i in range(rows.count) for token in taken(batch, i)]
    assert len(set(shown)) == len(shown) >= 76
    spans = [(begin, end) for begin, end in zip(rows.begins, rows.ends, strict=True)]
    assert spans[0] == (0, 9) and spans[-1][1] == len(shard.tokens)
    assert all(one[1] == two[0] for one, two in pairwise(spans))


def test_units_are_drawn_by_chance_and_a_unit_moves_no_other(shard):
    rows = rows_of(shard, "document")
    order = Poisson(rows, 0.3, 5, 11, (0, 1))
    drawn = np.stack([np.isin(np.arange(5), order.units(step)) for step in range(4_000)])
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 4 * (0.21 / 4_000) ** 0.5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.06
    wide = Poisson(rows, 1.0, 5, 11, (0, 1))[3]
    for step in range(20):
        batch, units = order[step], order.units(step)
        assert batch["tokens"].shape == (5, 8)
        assert (batch["index"][len(units) :] == -1).all()
        assert not batch["weights"][len(units) :].any()
        if step == 3:
            for place, unit in enumerate(units):
                np.testing.assert_array_equal(batch["tokens"][place], wide["tokens"][unit])


def test_of_more_units_than_fit_any_are_as_likely(shard):
    order = Poisson(rows_of(shard, "document"), 0.999, 2, 3, (0, 1))
    drawn = np.concatenate([order.units(step) for step in range(3_000)])
    assert len(drawn) == 6_000
    assert np.abs(np.bincount(drawn) / 3_000 - 0.4).max() < 4 * (0.24 / 3_000) ** 0.5


def test_batches_go_on_where_they_were_and_are_alike_for_any_processes(shard):
    rows = rows_of(shard, "row")
    make = lambda **more: poisson_batches(rows, context=8, rate=0.3, batch=4, seed=7, **more)  # noqa: E731
    whole = make()
    first = [next(whole) for _ in range(3)]
    state, later = whole.state(), next(whole)
    whole.close()
    again, part = make(), make(process=(1, 2))
    again.restore(state)
    parts = [next(part) for _ in range(3)]
    for name, array in next(again).items():
        np.testing.assert_array_equal(array, later[name])
        np.testing.assert_array_equal(parts[2][name], first[2][name][2:])
    again.close(), part.close()
    other = poisson_batches(rows, context=8, rate=0.3, batch=4, seed=8)
    with pytest.raises(DataError, match="seed"):
        other.restore(state)

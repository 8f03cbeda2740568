"""Rows, their order, and the workers that make them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_makers import prepared, shard_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import data
from jaxgen.data.pack import rows_per_epoch
from jaxgen.errors import ConfigError, DataError

LENGTHS = (5, 1, 30, 2, 17, 9, 64, 3, 11)
NAMES = ("tokens", "targets", "weights", "segments", "positions", "index")


def take(batches, count):
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        for name in NAMES:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def check_rows(batch, shard):
    """Compare a batch with a slow reading of the shard, position by position."""
    ends = shard.offsets.astype(int)
    for b, start in enumerate(batch["index"]):
        segment, position, last = 0, 0, None
        for t in range(batch["tokens"].shape[1]):
            if not batch["segments"][b, t]:
                assert batch["weights"][b, t] == 0
                continue
            place = (start + t) % len(shard.tokens)
            document = int(np.searchsorted(ends, place, side="right")) - 1
            turned = (document, (start + t) // len(shard.tokens))
            position = 0 if turned != last else position + 1
            segment, last = segment + (turned != last), turned
            assert batch["tokens"][b, t] == shard.tokens[place]
            assert batch["segments"][b, t] == segment
            assert batch["positions"][b, t] == position
            within = place + 1 < ends[document + 1]
            if batch["weights"][b, t]:
                assert within and batch["targets"][b, t] == shard.tokens[place + 1]
            else:
                assert not within


def targets_of(batches):
    return sorted(int(t) for b in batches for t in b["targets"][b["weights"] > 0])


def wanted_targets(lengths):
    begins = np.cumsum([0, *lengths])[:-1]
    return sorted(set(range(sum(lengths))) - set(begins.tolist()))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    context=st.integers(1, 20),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_an_epoch_predicts_every_token_once(tmp_path_factory, lengths, context, batch, seed):
    lengths = [*lengths, 2 + max(0, context - sum(lengths))]
    shard = shard_of(tmp_path_factory.mktemp("s"), lengths)
    found = list(data.in_order(shard, context=context, batch=batch))
    assert targets_of(found) == wanted_targets(lengths)
    rows = rows_per_epoch(shard, context)
    epoch = take(data.batches(shard, context=context, batch=1, seed=seed), 2 * rows)
    for part in (epoch[:rows], epoch[rows:]):
        assert targets_of(part) == wanted_targets(lengths)
    for batch_ in [*found, *epoch]:
        check_rows(batch_, shard)


def test_epochs_differ_in_order_and_in_where_rows_begin(tmp_path):
    shard = shard_of(tmp_path, [4000])
    rows = rows_per_epoch(shard, 16)
    found = take(data.batches(shard, context=16, batch=rows, seed=3), 2)
    starts = [set(batch["index"].tolist()) for batch in found]
    assert len(starts[0]) == rows and not starts[0] & starts[1]
    other = take(data.batches(shard, context=16, batch=rows, seed=4), 1)
    assert (found[0]["index"] != other[0]["index"]).any()


def test_shapes_and_types_are_those_of_a_step(tmp_path):
    batch = take(data.batches(shard_of(tmp_path, LENGTHS), context=16, batch=3, seed=0), 1)[0]
    assert set(batch) == set(NAMES)
    for name in NAMES[:-1]:
        assert batch[name].shape == (3, 16)
        assert batch[name].dtype == (np.float32 if name == "weights" else np.int32)
    assert batch["index"].shape == (3,) and batch["index"].dtype == np.int64


@pytest.mark.parametrize("step", (0, 1, 7, 19, 20, 33))
def test_resumed_at_any_step_equals_uninterrupted(tmp_path, step):
    shard = shard_of(tmp_path, LENGTHS)
    make = {"context": 8, "batch": 3, "seed": 11}
    whole = take(data.batches(shard, **make), 40)
    first = data.batches(shard, **make)
    same([next(first) for _ in range(step)], whole[:step])
    state = json.loads(json.dumps(first.state()))
    first.close()
    again = data.batches(shard, **make)
    next(again)
    again.restore(state)
    same(take(again, 40 - step), whole[step:])
    same(take(data.batches(shard, **make, start=step), 40 - step), whole[step:])


@pytest.mark.parametrize("count", (2, 3, 6))
def test_processes_together_hold_the_global_batch(tmp_path, count):
    shard = shard_of(tmp_path, LENGTHS)
    make = {"context": 8, "batch": 6}
    for each in (
        lambda process: take(data.batches(shard, **make, seed=5, process=process), 9),
        lambda process: list(data.in_order(shard, **make, process=process)),
    ):
        parts = [each((index, count)) for index in range(count)]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in NAMES}
            for step in zip(*parts, strict=True)
        ]
        same(joined, each((0, 1)))


def test_workers_give_the_batches_of_a_thread(tmp_path):
    shard = shard_of(tmp_path, LENGTHS)
    make = {"context": 8, "batch": 3, "seed": 11}
    wanted = take(data.batches(shard, **make), 30)
    batches = data.batches(shard, **make, workers=2)
    same([next(batches) for _ in range(7)], wanted[:7])
    state = batches.state()
    same(take(batches, 3), wanted[7:10])
    again = data.batches(shard, **make, workers=1)
    again.restore(state)
    same(take(again, 23), wanted[7:])


@pytest.mark.parametrize(
    ("name", "change"),
    [("train.seed", {"seed": 2}), ("train.batch", {"batch": 4}), ("model.context", {"context": 9})],
)
def test_a_position_of_other_settings_is_refused_by_name(tmp_path, name, change):
    shard = shard_of(tmp_path, LENGTHS)
    make = {"context": 8, "batch": 3, "seed": 1}
    state = data.batches(shard, **make).state()
    with pytest.raises(DataError, match=f"saved with {name}="):
        data.batches(shard, **(make | change)).restore(state)


def test_a_position_in_an_order_that_is_no_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data.loader, "MANY", 1)
    batches = data.batches(shard_of(tmp_path, LENGTHS), context=8, batch=3, seed=1)
    held = {"format": 1, "tokens": batches.rows.shard.checksum}
    with pytest.raises(DataError, match=r"saved with data\.format=1, not 2"):
        batches.restore(batches.state() | held)


def test_a_position_in_another_text_or_a_damaged_one_is_refused(tmp_path):
    make = {"context": 8, "batch": 3, "seed": 1}
    batches = data.batches(shard_of(tmp_path / "a", LENGTHS), **make)
    other = data.batches(shard_of(tmp_path / "b", [*LENGTHS, 9]), **make)
    with pytest.raises(DataError, match="digest of the training tokens"):
        batches.restore(other.state())
    # The first format told tokens by the sha256 of their file.
    held = {"format": 1, "tokens": batches.rows.shard.checksum, "step": 5}
    batches.restore(batches.state() | held)
    assert batches.state()["step"] == 5
    with pytest.raises(DataError, match="digest of the training tokens"):
        batches.restore(other.state() | held | {"tokens": other.rows.shard.checksum})
    for step in (-1, None, "3", True):
        with pytest.raises(DataError, match="step="):
            batches.restore(batches.state() | {"step": step})


def test_the_last_batch_is_filled_up_with_padding(tmp_path):
    shard = shard_of(tmp_path, [20])
    found = list(data.in_order(shard, context=8, batch=2))
    assert [batch["index"].tolist() for batch in found] == [[0, 8], [16, -1]]
    assert found[1]["segments"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [0] * 8]
    assert found[1]["weights"].sum() == 3
    assert len(list(data.in_order(shard, context=8, batch=2, limit=1))) == 1


def test_too_little_text_is_refused(tmp_path):
    short = shard_of(tmp_path / "a", [1, 1, 1])
    for make in (lambda s: data.batches(s, context=2, batch=1, seed=0),
                 lambda s: next(data.in_order(s, context=2, batch=1))):  # fmt: skip
        with pytest.raises(DataError, match="none of its 3 documents has 2 tokens"):
            make(short)
        with pytest.raises(DataError, match="none of its 0 documents"):
            make(shard_of(tmp_path / "b", []))
    with pytest.raises(DataError, match=r"holds 9 tokens, but one row of context=9 takes 10"):
        data.batches(shard_of(tmp_path / "c", [9]), context=9, batch=1, seed=0)


@pytest.mark.parametrize("change", ({"batch": 0}, {"process": (2, 2)}, {"process": (0, 2)},
                                    {"seed": -1}, {"context": 0}, {"start": -1}))  # fmt: skip
def test_wrong_arguments_are_refused_by_name(tmp_path, change):
    make = {"context": 8, "batch": 3, "seed": 1} | change
    name = "batch" if change.get("process") == (0, 2) else next(iter(change))
    with pytest.raises(ConfigError, match=f"{name}="):
        data.batches(shard_of(tmp_path, LENGTHS), **make)


@pytest.mark.parametrize("change", ("touched", "gone"))
def test_a_shard_that_changes_during_training_is_noticed(tmp_path, change):
    shard = shard_of(tmp_path, LENGTHS)
    batches = data.batches(shard, context=8, batch=3, seed=1)
    next(batches)
    if change == "gone":
        shard.path.unlink()
    else:
        os.utime(shard.path, (1, 1))
    with pytest.raises(DataError, match="while it was in use"):
        next(batches)
    batches.close()


def test_documents_are_named_by_number_and_file(tmp_path):
    _, corpus = prepared(tmp_path)
    name = data.documents_of(corpus.train, 0, 8)
    assert name == f"document 0 of train, from {tmp_path / 'stories.jsonl'}"
    begin = int(corpus.train.offsets[5]) - 2
    assert data.documents_of(corpus.train, begin, 8).startswith("documents 4-5 of train")
    assert data.documents_of(corpus.train, -1, 8) == "padding"


def workers_of(parent):
    """Return the process ids of grain's workers below `parent`, by /proc."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, above = file.read().rpartition(")")[2].split()[:2]
            with open(f"/proc/{name}/cmdline") as file:
                command = file.read()
        except OSError:
            continue
        if int(above) == parent and state != "Z" and "spawn_main" in command:
            found.append(int(name))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_leave_signals_to_their_parent_and_a_killed_one_is_an_error_within_seconds(
    tmp_path, capfd
):
    batches = data.batches(shard_of(tmp_path, LENGTHS), context=8, batch=3, seed=1, workers=1)
    next(batches)
    (worker,) = workers_of(os.getpid())
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    for _ in range(50):
        next(batches)
    assert workers_of(os.getpid()) == [worker] and capfd.readouterr().err == ""
    os.kill(worker, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(DataError, match="process that makes batches"):
        for _ in range(1000):
            next(batches)
    assert time.monotonic() - begin < 10


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    shard = shard_of(tmp_path, LENGTHS)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from jaxgen import data\n"
        "if __name__ == '__main__':\n"
        "    shard = data.open_shard(Path(sys.argv[1]))\n"
        "    batches = data.batches(shard, context=8, batch=3, seed=1, workers=2)\n"
        "    next(batches), next(batches), print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, str(script), str(shard.path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    workers = workers_of(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while any(os.path.isdir(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < until, "orphans"
        time.sleep(0.1)

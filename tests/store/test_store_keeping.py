"""Which checkpoints stay, and what a save refuses to do to them."""

import math
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.store import Checkpoints, disk_space

TREE = {"w": jnp.zeros(3)}


def saved(folder, metrics, **keep):
    checkpoints = Checkpoints(folder, fingerprints={}, **keep)
    for step, metric in enumerate(metrics, 1):
        checkpoints.save(step, TREE, {}, metric=metric)
    checkpoints.wait()
    return checkpoints


POLICIES = [
    (1, 0, [5.0, 1.0, 3.0], [3], 3),
    (2, 0, [5.0, 1.0, 3.0], [2, 3], 2),
    (1, 1, [5.0, 1.0, 3.0, 4.0], [2, 4], 2),
    (1, 2, [5.0, 1.0, 3.0, 4.0], [2, 3, 4], 2),
    (2, 1, [1.0, None, None, None], [1, 3, 4], 1),
    (1, 1, [None, None], [2], None),
    (1, 1, [2.0, math.nan, math.inf], [1, 3], 1),
    (1, 1, [1.0, 1.0, 2.0], [2, 3], 2),
]


@pytest.mark.parametrize("keep_last, keep_best, metrics, steps, best", POLICIES)
def test_the_newest_and_the_best_stay(tmp_path, keep_last, keep_best, metrics, steps, best):
    checkpoints = saved(tmp_path, metrics, keep_last=keep_last, keep_best=keep_best)
    assert checkpoints.steps() == steps
    assert checkpoints.best() == best
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{step:08d}" for step in steps]


def test_steps_are_read_from_the_disk_whoever_made_or_took_them(tmp_path):
    checkpoints = saved(tmp_path, [1.0, 2.0, 3.0], keep_last=3, keep_best=0)
    (tmp_path / "00000002").rename(tmp_path / "mine")
    for stray in ("4", "0x5", "00000006.bak", "²"):
        (tmp_path / stray).mkdir()
    (tmp_path / "00000007").write_text("a file")
    assert checkpoints.steps() == [1, 3]


def test_order_is_by_number_not_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=0, fingerprints={})
    for step in (9, 99_999_999, 100_000_000):
        checkpoints.save(step, TREE, {}, metric=None)
    checkpoints.wait()
    assert checkpoints.steps() == [99_999_999, 100_000_000]
    assert checkpoints.restore(TREE).step == 100_000_000


def test_saving_the_same_step_again_is_no_work_but_other_content_is_refused(tmp_path):
    checkpoints = saved(tmp_path, [1.0], keep_last=1, keep_best=0)
    before = (tmp_path / "00000001/manifest.json").read_bytes()
    checkpoints.save(1, TREE, {"seconds": 3}, metric=None)
    checkpoints.wait()
    assert (tmp_path / "00000001/manifest.json").read_bytes() == before
    checkpoints.save(1, {"w": jnp.ones(3)}, {}, metric=None)
    with pytest.raises(CheckpointError, match="00000001 exists already with other arrays"):
        checkpoints.wait()
    assert (tmp_path / "00000001/manifest.json").read_bytes() == before


def test_a_damaged_step_is_replaced_when_it_is_saved_again(tmp_path):
    checkpoints = saved(tmp_path, [1.0], keep_last=1, keep_best=0)
    (tmp_path / "00000001/manifest.json").write_text("{}")
    checkpoints.save(1, TREE, {}, metric=None)
    checkpoints.wait()
    assert checkpoints.verify(1) == []


def test_a_save_never_goes_behind_a_later_step(tmp_path):
    checkpoints = saved(tmp_path, [1.0, 2.0, 3.0], keep_last=2, keep_best=0)
    with pytest.raises(CheckpointError, match="holds step 3, later than 1"):
        checkpoints.save(1, TREE, {}, metric=None)
    assert checkpoints.steps() == [2, 3]


def test_cleaning_removes_leftovers_only(tmp_path):
    checkpoints = saved(tmp_path, [1.0], keep_last=1, keep_best=0)
    (tmp_path / ".tmp-00000002-abc" / "arrays").mkdir(parents=True)
    (tmp_path / ".tmp-file").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoints.clean() == [".tmp-00000002-abc", ".tmp-file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "notes.txt"]


def test_cleaning_waits_for_the_save_that_is_under_way(tmp_path):
    half_way = threading.Event()

    def linger(stage):
        if stage == "arrays":
            half_way.set()
            time.sleep(0.2)

    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=0, fingerprints={}, failpoint=linger)
    checkpoints.save(1, TREE, {}, metric=None)
    assert half_way.wait(20)
    assert checkpoints.clean() == []
    checkpoints.wait()
    assert checkpoints.verify(1) == []


def test_a_step_saved_before_its_metric_was_known_gets_it_and_keeps_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, fingerprints={}, keep_last=1, keep_best=1)
    checkpoints.save(1, TREE, {"loss": None}, metric=None)
    for metric in (math.nan, 2.5, None, 9.0):  # while the save may still be under way
        checkpoints.add_metric(1, metric, {"loss": 2.5})
    checkpoints.wait()
    found = checkpoints.restore(TREE)
    assert checkpoints.best() == 1 and found.extra == {"loss": 2.5} and not found.warnings
    checkpoints.save(2, TREE, {}, metric=None)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    checkpoints.add_metric(2, 1.5, {})  # what was best before need not stay
    checkpoints.wait()
    assert checkpoints.steps() == [2] and checkpoints.best() == 2


def test_a_metric_for_a_step_that_is_not_there_is_refused(tmp_path):
    checkpoints = saved(tmp_path, [1.0], keep_last=1, keep_best=1)
    checkpoints.add_metric(7, 1.0, {})
    with pytest.raises(CheckpointError, match="00000007"):
        checkpoints.wait()


def test_a_metric_is_best_if_its_step_would_be_kept_for_it(tmp_path):
    checkpoints = saved(tmp_path, [3.0, 2.0, 4.0], keep_last=1, keep_best=2)
    another = Checkpoints(tmp_path, keep_last=1, keep_best=2, fingerprints={})
    for each in (checkpoints, another):
        answers = [each.is_best(metric) for metric in (2.5, 3.0, 3.5, math.nan)]
        assert answers == [True, False, False, False]
    checkpoints.save(4, TREE, {}, metric=1.0)
    checkpoints.wait()
    assert not checkpoints.is_best(2.5) and checkpoints.is_best(1.5)
    assert not Checkpoints(tmp_path, keep_last=1, keep_best=0, fingerprints={}).is_best(0.0)


def test_room_for_all_that_a_run_keeps_is_asked_for_at_its_start(tmp_path, monkeypatch):
    big = {"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}  # 4 MiB
    free = shutil.disk_usage(tmp_path)._replace(free=12 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    disk_space.check_run(tmp_path / "new", big, 2)
    with pytest.raises(CheckpointError, match=r"3 checkpoints of 4.0 MiB need 14.4 MiB, 12.0 MiB"):
        disk_space.check_run(tmp_path / "new", big, 3)
    saved(tmp_path / "new", [1.0], keep_last=1, keep_best=0)
    disk_space.check_run(tmp_path / "new", big, 3)

"""Checkpoints in a bucket are whole or absent, and one run at a time writes them."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import files
from jaxgen.errors import BusyError, CheckpointError
from jaxgen.store import Checkpoints, lease, lock_of

RUN = "s3://bkt/run"


class Killed(BaseException):
    """What a process does after it is none of ours to see."""


def tree(step):
    weights = np.arange(24, dtype=np.float32).reshape(4, 6) + step
    return {"params": {"w": jnp.asarray(weights), "b": jnp.full(3, step, jnp.bfloat16)}}


def opened(**more):
    return Checkpoints(
        f"{RUN}/checkpoints", **{"keep_last": 2, "keep_best": 0, "fingerprints": {}} | more
    )


def save(checkpoints, step):
    checkpoints.save(step, tree(step), {"data": step}, metric=None)
    checkpoints.wait()


def assert_sound(step):
    checkpoints = opened()
    assert checkpoints.verify(step) == []
    found = checkpoints.restore(tree(0), step)
    assert found.extra == {"data": step}
    for name, leaf in tree(step)["params"].items():
        assert found.tree["params"][name].tobytes() == leaf.tobytes()


def test_what_is_saved_is_restored_bit_by_bit_and_nothing_is_renamed(bucket):
    checkpoints = opened()
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert checkpoints.steps() == [2, 3]
    assert_sound(2)
    assert_sound(3)
    np.testing.assert_array_equal(opened().read()["params"]["w"], tree(3)["params"]["w"])
    # Last of all that is uploaded for a step is its manifest.
    written = [key for method, key in bucket.calls if method in ("open", "pipe_file")]
    assert written[-2:] == [
        "bkt/run/checkpoints/00000003/pieces/00000.safetensors",
        "bkt/run/checkpoints/00000003/manifest.json",
    ]


def test_killed_at_any_request_every_step_that_is_listed_is_sound(bucket):
    kills, number = 0, 0
    while True:
        bucket.system.store.clear()
        save(opened(), 1)
        save(opened(), 2)
        first, number = len(bucket.calls), number + 1

        def kill(method, key, last=first + number):
            if len(bucket.calls) > last:
                raise Killed

        bucket.before = kill
        try:
            save(opened(), 3)
        except Killed:
            kills += 1
        else:
            break
        finally:
            bucket.before = lambda method, key: None
        left = opened().steps()
        assert left in ([1, 2], [1, 2, 3], [2, 3])
        for step in left:
            assert_sound(step)
        checkpoints = opened()
        checkpoints.clean()
        names = {path.name for path in files.to_path(f"{RUN}/checkpoints").iterdir()}
        assert names == {f"{step:08d}" for step in left}
        save(checkpoints, 3)
        assert opened().steps() == [2, 3]
    assert kills >= 20


@pytest.mark.parametrize("what", ["pieces/00000.safetensors", "manifest.json"])
def test_a_damaged_step_is_passed_over(bucket, what):
    save(opened(), 1)
    save(opened(), 2)
    path = files.to_path(f"{RUN}/checkpoints/00000002") / what
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    found = opened().restore(tree(0))
    assert found.step == 1 and "checkpoint 2 is damaged" in found.warnings[0]
    assert opened().verify(2)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_is_held_no_more_writes_nothing_and_leaves_what_the_new_owner_has(bucket, late):
    asked = []

    def refuse():
        asked.append(None)
        if len(asked) > late:
            # The new owner has come to the same step meanwhile.
            bucket.calls.clear()
            if late:
                save(opened(), 2)
            raise BusyError("taken")

    save(opened(), 1)
    with pytest.raises(BusyError, match="taken"):
        save(opened(before=refuse), 2)
    assert opened().steps() == ([1, 2] if late else [1])
    if late:
        assert_sound(2)
    else:
        assert not [call for call in bucket.calls if call[0] in ("open", "pipe_file", "rm_file")]
    checkpoints = opened(before=refuse)
    checkpoints.add_metric(1, 2.5, {})
    with pytest.raises(BusyError, match="taken"):
        checkpoints.wait()
    assert opened().about(1).metric is None


def test_what_an_interrupted_save_has_left_is_no_part_of_the_step(bucket):
    stray = files.to_path(f"{RUN}/checkpoints/00000001/pieces/00001.safetensors")
    save(opened(), 1)
    raw = stray.with_name("00000.safetensors").read_bytes()
    files.remove(stray.parent.parent)
    stray.write_bytes(raw)
    save(opened(), 1)
    assert_sound(1)
    assert not stray.exists()


def test_a_step_with_other_arrays_is_not_replaced(bucket):
    save(opened(), 1)
    with pytest.raises(CheckpointError, match="exists already with other arrays"):
        checkpoints = opened()
        checkpoints.save(1, tree(7), {}, metric=None)
        checkpoints.wait()
    assert_sound(1)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.05)
    monkeypatch.setattr(lease, "LEASE", 0.4)


def record(number=1):
    return json.loads((files.to_path(RUN) / f"LOCK/{number:08d}").read_bytes())


def rewrite(number=1, **changes):
    path = files.to_path(RUN) / f"LOCK/{number:08d}"
    path.write_bytes(json.dumps(record(number) | changes).encode())


def test_a_second_writer_of_this_machine_is_refused_at_once(bucket, hasty, monkeypatch):
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: None)
    # What is left where an owner was killed as it took the folder decides nothing.
    (files.to_path(RUN) / "LOCK/00000000").write_bytes(b'{"released": true}')
    with lock_of(files.to_path(RUN)):
        (files.to_path(RUN) / "LOCK/00000000").write_bytes(b'{"released": true}')
        before = time.monotonic()
        with pytest.raises(BusyError, match=rf"{RUN} is in use by process \d+ on .* since"):
            lock_of(files.to_path(RUN)).__enter__()
        assert time.monotonic() - before < lease.LEASE
    with lock_of(files.to_path(RUN)) as lock:
        lock.check()
    assert [path.name for path in (files.to_path(RUN) / "LOCK").iterdir()] == ["00000002"]


@pytest.mark.parametrize("here", ["one", ""])
def test_a_second_writer_of_another_machine_is_refused_once_the_owner_renews(
    bucket, hasty, monkeypatch, here
):
    """One that can't tell which machine it is on is on another: pids say nothing then."""
    monkeypatch.setattr("jaxgen.host.machine", lambda: here)
    with lock_of(files.to_path(RUN)):
        monkeypatch.setattr("jaxgen.host.machine", lambda: here and "another")
        monkeypatch.setattr("jaxgen.host.birth", lambda pid: "later")
        with pytest.raises(BusyError, match="is in use by process"):
            lock_of(files.to_path(RUN)).__enter__()


@pytest.mark.parametrize("end", ["released", "removed"])
def test_a_folder_that_is_given_back_while_another_waits_is_taken(bucket, hasty, monkeypatch, end):
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: None)
    with lock_of(files.to_path(RUN)):
        rewrite(machine="another")
        looks = []

        def give_back(method, key):
            if method == "cat_file":
                looks.append(key)
            if len(looks) == 2:
                bucket.before = lambda method, key: None
                if end == "released":
                    rewrite(released=True)
                else:
                    (files.to_path(RUN) / "LOCK/00000001").unlink()

        bucket.before = give_back
        with lock_of(files.to_path(RUN)) as lock:
            lock.check()
        assert looks


def test_a_lock_that_was_removed_is_not_made_again_and_fences_its_owner(bucket, hasty):
    with lock_of(files.to_path(RUN)) as lock:
        path = lock._object(1)
        path.unlink()
        time.sleep(3 * lease.RENEWAL)
        with pytest.raises(BusyError, match="is held no more"):
            lock.check()
    assert not path.exists()


@pytest.mark.parametrize("gone", [{"birth": "0"}, {"machine": "another"}, {"released": True}])
def test_the_folder_of_an_owner_that_is_gone_is_taken_and_the_old_one_is_fenced(
    bucket, hasty, monkeypatch, gone
):
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: None)
    with lock_of(files.to_path(RUN)) as old:
        old.check()
        rewrite(**gone)
        with lock_of(files.to_path(RUN)) as new:
            new.check()
            with pytest.raises(
                BusyError, match=r"has been taken by process .*; nothing more is saved"
            ):
                old.check()
    # The old owner's end does not give the folder back.
    assert not (files.to_path(RUN) / "LOCK/00000001").exists() and record(2)["released"]


def test_of_two_that_take_a_folder_at_once_one_gets_it(bucket, hasty):
    """The other one's object is made between a look at the numbers and the attempt."""
    rival = {"pid": 1, "host": "h", "started": "s", "machine": "m", "birth": "b", "renewals": 0}

    def overtake(method, key):
        if method == "pipe_file" and key.endswith("LOCK/00000001"):
            bucket.before = lambda method, key: None
            (files.to_path(RUN) / "LOCK/00000001").write_bytes(json.dumps(rival).encode())

    bucket.before = overtake
    with lock_of(files.to_path(RUN)):  # once the rival is not heard of
        assert record(2)["renewals"] >= 0

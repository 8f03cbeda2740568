"""A damaged checkpoint is found, named and passed over; nothing is restored that was not saved."""

import json
import os
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.store import Checkpoints, manifest, pytree_io

TREE = {"params": {"w": jnp.arange(600.0), "b": jnp.ones(3, jnp.bfloat16)}, "n": jnp.int32(0)}


def open_at(folder, **others):
    return Checkpoints(folder, **{"keep_last": 3, "keep_best": 0, "fingerprints": {}} | others)


def state(step):
    return jax.tree.map(lambda leaf: leaf + step, TREE)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "checkpoints"
    writer = open_at(folder)
    for step in (1, 2):
        writer.save(step, state(step), {"at": step}, metric=None)
    writer.wait()
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "checkpoints")


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def step_of(path):
    return next(parent for parent in path.parents if parent.name.isdigit())


def others(path, step):
    """The files of a step that are no manifest and hold other bytes than `path`."""
    found = [other for other in files_of(step) if other.name != "manifest.json"]
    return [other for other in found if other.read_bytes() != path.read_bytes()]


def swap(path):
    other, raw = others(path, step_of(path))[-1], path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(raw)


def take_from_the_step_before(path):
    step = step_of(path)
    before = step.parent / f"{int(step.name) - 1:08d}"
    same = before / path.relative_to(step)  # most files are named by chance
    if not same.exists() or same.read_bytes() == path.read_bytes():
        same = others(path, before)[0]
    shutil.copyfile(same, path)


DAMAGES = [
    flip,
    truncate,
    os.unlink,
    swap,
    take_from_the_step_before,
    zero,
    empty,
    replace_by_folder,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_damaged_file_is_named_and_the_step_before_is_restored(original, tmp_path, damage):
    names = [path.relative_to(original) for path in files_of(original / "00000002")]
    assert len(names) >= 6
    for i, name in enumerate(names):
        folder = shutil.copytree(original, tmp_path / str(i))
        damage(folder / name)
        checkpoints = open_at(folder)
        found = checkpoints.restore(TREE)
        assert found.step == 1 and found.extra == {"at": 1}
        assert jax.tree.all(jax.tree.map(np.array_equal, found.tree, state(1)))
        (warning,) = found.warnings
        assert str(folder / name) in warning and "going back to step 1" in warning
        assert any(str(folder / name) in problem for problem in checkpoints.verify(2))
        with pytest.warns(UserWarning, match="checkpoint 2 is damaged"):
            assert checkpoints.read()["step"] == 1
        with pytest.raises(CheckpointError, match=r"checkpoint 2 is damaged: .*give another of"):
            checkpoints.restore(TREE, step=2)


def test_every_flipped_bit_of_a_manifest_is_damage(folder):
    path = folder / "00000002" / "manifest.json"
    raw = path.read_bytes()
    for at in range(0, len(raw), 7):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(manifest.DamageError, match="manifest"):
            manifest.read_manifest(path.parent)


def test_a_renamed_step_is_damage(folder):
    shutil.copytree(folder / "00000002", folder / "00000009")
    found = open_at(folder).restore(TREE)
    assert found.step == 2
    assert (
        "00000009/manifest.json is of step 2: it, or its folder, has been renamed"
        in found.warnings[0]
    )


def test_wrong_arrays_in_sound_files_are_damage(folder):
    step = folder / "00000002"
    fields = json.loads((step / "manifest.json").read_text())
    del fields["sha256"]
    fields["arrays"]["params/w"]["sha256"] = "0" * 64
    (step / "manifest.json").unlink()
    manifest.write_manifest(step, manifest.Manifest(**fields))
    checkpoints = open_at(folder)
    assert "array params/w has been changed" in checkpoints.verify(2)[0]
    assert "array params/w has been changed" in checkpoints.restore(TREE).warnings[0]


def test_verifying_array_by_array_finds_the_same_and_misses_none(folder, monkeypatch):
    read, load = [], Checkpoints._load

    def noted(self, about, part, **how):
        read.append(list(part))
        return load(self, about, part, **how)

    monkeypatch.setattr("jaxgen.store.checkpoints.PART", 1)
    monkeypatch.setattr(Checkpoints, "_load", noted)
    assert open_at(folder).verify(2) == []
    assert read == [[name] for name in open_at(folder).about(2).arrays] and len(read) == 3


def test_parts_hold_all_in_order_and_no_more_bytes_than_asked():
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 0}
    rows = {name: pytree_io.Leaf("int8", (size,)) for name, size in sizes.items()}
    assert [list(part) for part in pytree_io.batches(rows, 7)] == [
        ["a", "b"],
        ["c"],
        ["d", "e"],
    ]
    assert not list(pytree_io.batches({}, 7))


def test_unverified_restoring_still_sees_missing_and_short_files(folder):
    data = next(path for path in files_of(folder / "00000002") if path.parent.name == "d")
    truncate(data)
    found = open_at(folder, verify="off").restore(TREE)
    assert found.step == 1 and str(data) in found.warnings[0]


def test_when_all_steps_are_damaged_that_is_an_error_and_nothing_is_touched(folder):
    for step in ("00000001", "00000002"):
        flip(max(files_of(folder / step), key=lambda path: path.stat().st_size))
    before = files_of(folder)
    checkpoints = open_at(folder)
    for call in (lambda: checkpoints.restore(TREE), checkpoints.read):
        with pytest.raises(CheckpointError, match=r"no sound checkpoint .2: .*; 1: .*") as caught:
            call()
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
    assert files_of(folder) == before


def test_steps_without_a_manifest_are_an_error_never_a_fresh_start(tmp_path):
    (tmp_path / "00000005").mkdir()
    with pytest.raises(CheckpointError, match=r"00000005/manifest.json is missing"):
        open_at(tmp_path).restore(TREE)


def test_a_newer_format_asks_for_a_newer_jaxgen(folder):
    step = folder / "00000002"
    fields = json.loads((step / "manifest.json").read_text())
    del fields["sha256"]
    (step / "manifest.json").unlink()
    manifest.write_manifest(step, manifest.Manifest(**fields | {"format": 9, "needs": "7.1"}))
    for call in (lambda: open_at(folder).restore(TREE), open_at(folder).read):
        with pytest.raises(CheckpointError, match=r"format 9; it needs jaxgen >= 7\.1"):
            call()


def test_a_sound_folder_is_read_without_a_warning(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_at(folder).read()["step"] == 2
    assert open_at(folder).verify(1) == []
    with pytest.raises(CheckpointError, match="holds no step 3; it holds 1, 2"):
        open_at(folder).verify(3)


def test_what_was_damaged_is_made_anew_and_does_not_count_as_kept(folder):
    flip(max(files_of(folder / "00000002"), key=lambda path: path.stat().st_size))
    checkpoints = open_at(folder, keep_last=2)
    assert checkpoints.restore(TREE).step == 1
    checkpoints.save(2, state(2), {}, metric=None)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.verify(2) == []
    assert checkpoints.clean() == []


def test_a_damaged_later_step_goes_when_an_earlier_one_is_saved(folder):
    shutil.copytree(folder / "00000002", folder / "00000009")
    checkpoints = open_at(folder)
    checkpoints.restore(TREE)
    checkpoints.save(3, state(3), {}, metric=None)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]

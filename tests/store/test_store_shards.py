"""Shards of several processes are read back as any slice of the whole, or refused."""

import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from text_store import Texts

from jaxgen.errors import BusyError, CheckpointError, ConfigError
from jaxgen.mesh.group import Group
from jaxgen.store import Checkpoints, manifest, multihost, pytree_io, shards
from jaxgen.store.manifest import DamageError


def parts(name, array, cuts):
    """Cut an array along each axis; return its shards."""
    edges = [[0, *cut, size] for cut, size in zip(cuts, array.shape, strict=True)]
    spans = [list(itertools.pairwise(edge)) for edge in edges]
    return {
        shards.shard_name(name, where): np.asarray(array[tuple(slice(*span) for span in where)])
        for where in itertools.product(*spans)
    }


ARRAYS = {
    "params/w": np.arange(6 * 10, dtype=np.float32).reshape(6, 10),
    "params/b": np.arange(7).astype(jnp.bfloat16),
    "small": np.arange(8).astype("float8_e4m3fn").reshape(2, 4),
    "step": np.asarray(5, np.int32),
    "none": np.zeros((0, 3), np.float32),
}
CUTS = {
    "params/w": [[2], [3, 7]],
    "params/b": [[5]],
    "small": [[], [1]],
    "step": [],
    "none": [[], []],
}


@pytest.fixture
def folder(tmp_path):
    """The shards of two processes, dealt out alternately."""
    every = [pair for name in ARRAYS for pair in parts(name, ARRAYS[name], CUTS[name]).items()]
    for process in (0, 1):
        mine = dict(every[process::2])
        path = tmp_path / shards.FOLDER / f"{process:05d}.safetensors"
        shards.write_shards(path, mine, shards.digests(mine))
    return tmp_path


def opened(folder, check=True):
    described = {name: pytree_io.Leaf(a.dtype.name, a.shape) for name, a in ARRAYS.items()}
    return shards.ShardReader(folder, described, check=check)


def test_every_region_of_every_array_is_fitted_together_bit_for_bit(folder):
    found = opened(folder)
    for name, array in ARRAYS.items():
        assert found.read_array(name).tobytes() == array.tobytes()
        assert found.read_array(name).dtype == array.dtype
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = sorted(rng.integers(0, 7, 2))
        c, d = sorted(rng.integers(0, 11, 2))
        region = found.read_region("params/w", (slice(a, b), slice(c, d)))
        np.testing.assert_array_equal(region, ARRAYS["params/w"][a:b, c:d])


def test_the_files_are_plain_safetensors(folder):
    from safetensors.numpy import load_file

    names = [set(load_file(path)) for path in sorted((folder / "pieces").iterdir())]
    assert "params/w@0:2,0:3" in names[0] and "params/w@0:2,3:7" in names[1]


def test_a_flipped_bit_of_any_piece_is_named_and_only_where_it_is_read(folder):
    path = folder / "pieces" / "00001.safetensors"
    tensors = shards.safetensors.open_file(path)
    tensor = tensors["params/w@0:2,3:7"]
    raw = bytearray(path.read_bytes())
    raw[tensor.begin + 5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamageError, match=r"00001.*piece params/w@0:2,3:7 has been changed"):
        opened(folder).read_array("params/w")
    opened(folder).read_region("params/w", (slice(2, 6), slice(0, 10)))
    opened(folder, check=False).read_array("params/w")


def test_a_missing_file_leaves_a_hole_that_is_found(folder):
    (folder / "pieces" / "00000.safetensors").unlink()
    with pytest.raises(DamageError, match=r"of 60 numbers of params/w are there"):
        opened(folder).read_array("params/w")


def groups(count):
    store, names = Texts(), tuple(f"process {i}" for i in range(count))
    return [Group(index=i, count=count, names=names, store=store) for i in range(count)]


def draft(step):
    array = ARRAYS["params/w"]
    rows = {"params/w": {"dtype": array.dtype.name, "shape": list(array.shape)}}
    return manifest.Manifest(
        step=step, metric=None, fingerprints={}, extra={}, arrays=rows, files={}, format=2,
        versions={}, time="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        ({"tokenizer": "a", "text": "b"}, None),
        ({"tokenizer": "a", "data": "old"}, None),  # the first checkpoints told the text otherwise
        ({"tokenizer": "a", "text": "c"}, r"another text \(c, now b\)"),
        ({"tokenizer": "c", "text": "b"}, r"another tokenizer \(c, now a\)"),
        ({"text": "b"}, r"another tokenizer \(none, now a\)"),
    ],
)
def test_a_checkpoint_of_another_text_or_tokenizer_is_refused_by_name(saved, why):
    there = dataclasses.replace(draft(3), fingerprints=saved)
    with pytest.raises(ConfigError, match=why) if why else nullcontext():
        manifest.refuse_others(Path("step"), there, {"tokenizer": "a", "text": "b"})


def written(target, step, fault=None):
    """Let two processes write a step; return what each ends with."""

    def write(group):
        try:
            mine = parts("params/w", ARRAYS["params/w"], [[3], []])
            own = dict([list(mine.items())[group.index]])
            if fault is not None:
                fault(group)
            multihost.write_step(group, target, draft(step), own, replaced=False)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(write, groups(2)))


def test_a_step_of_which_a_part_was_not_written_is_a_failed_save(tmp_path, monkeypatch):
    whole = shards.write_shards

    def forgetful(path, mine, sums):
        return whole(path, {} if path.name.startswith("00001") else mine, sums)

    monkeypatch.setattr(shards, "write_shards", forgetful)
    found = written(tmp_path / "00000007", 7)
    assert all(isinstance(error, CheckpointError) for error in found), found
    assert "params/w was not written" in str(found[0]) and not list(tmp_path.iterdir())


def test_a_step_is_whole_once_both_have_written_and_again_is_let_be(tmp_path):
    target = tmp_path / "00000007"
    assert written(target, 7) == [None, None]
    record = manifest.read_manifest(target)
    assert sorted(record.files) == ["pieces/00000.safetensors", "pieces/00001.safetensors"]
    assert manifest.damages(target, record, verify="full") == []
    before = target.stat().st_mtime_ns
    assert written(target, 7) == [None, None] and target.stat().st_mtime_ns == before
    ARRAYS["params/w"] += 1
    try:
        for error in written(target, 7):
            assert isinstance(error, CheckpointError) and "with other arrays" in str(error)
    finally:
        ARRAYS["params/w"] -= 1


def test_a_process_that_cannot_write_fails_all_and_leaves_no_step(tmp_path, monkeypatch):
    real = shards.write_shards

    def full(path, mine, sums):
        if path.name == "00001.safetensors":
            raise OSError(28, "No space left on device")
        real(path, mine, sums)

    monkeypatch.setattr(shards, "write_shards", full)
    for error in written(tmp_path / "00000007", 7):
        assert isinstance(error, CheckpointError) and "the disk is full, step 7" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_what_process_0_does_not_see_is_no_checkpoint(tmp_path, monkeypatch):
    seen = multihost._check_visible
    monkeypatch.setattr(
        multihost,
        "_check_visible",
        lambda folder, rows, group: (
            (folder / "pieces/00001.safetensors").unlink(),
            seen(folder, rows, group),
        ),
    )
    for error in written(tmp_path / "00000007", 7):
        assert isinstance(error, BusyError) and "written by process 1, is not seen" in str(error)
    assert not (tmp_path / "00000007").exists()


@pytest.fixture
def tree():
    """A state on a mesh of one device, with a key."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec())
    values = {"params": {"w": jnp.arange(6.0)}, "key": jax.random.key(3), "n": jnp.int32(4)}
    return jax.tree.map(lambda leaf: jax.device_put(leaf, where), values)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_a_state_returns_bit_for_bit_to_a_group_and_to_a_single_process(tree, tmp_path):
    (group,) = groups(1)
    several = Checkpoints(tmp_path, keep_last=2, keep_best=0, fingerprints={}, group=group)
    several.save(4, tree, {"at": 4}, metric=0.5)
    several.wait()
    alone = Checkpoints(tmp_path, keep_last=2, keep_best=0, fingerprints={})
    assert alone.verify(4) == [] and alone.best() == 4
    for reader in (several, alone):
        found = reader.restore(shapes(tree))
        assert (found.step, found.extra) == (4, {"at": 4})
        for new, old in zip(*map(jax.tree.leaves, (found.tree, tree)), strict=True):
            assert new.sharding == old.sharding and new.dtype == old.dtype
            bits = (
                jax.random.key_data
                if jnp.issubdtype(new.dtype, jax.dtypes.prng_key)
                else np.asarray
            )
            np.testing.assert_array_equal(bits(new), bits(old))
        # Memory of its own: a step may be given it.
        jax.jit(lambda t: jax.tree.map(lambda x: x, t), donate_argnums=0)(found.tree)
    np.testing.assert_array_equal(alone.read(4)["params"]["w"], np.arange(6.0))


def test_what_is_restored_does_not_borrow_the_memory_it_was_read_into(tree):
    like = jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=tree["n"].sharding)
    room = np.zeros((1 << 20) + 16, np.float32)
    begin = -room.ctypes.data // 4 % 16  # JAX borrows what begins at a multiple of 64 bytes
    source = room[begin : begin + (1 << 20)]
    found = shards.place_shards({"w": like}, lambda name, index: source)
    jax.block_until_ready(found)
    source[:] = 1
    assert float(found["w"].max()) == 0.0


def test_damage_that_one_process_finds_sends_all_back_to_the_step_before(tree, tmp_path):
    (group,) = groups(1)
    several = Checkpoints(tmp_path, keep_last=3, keep_best=0, fingerprints={}, group=group)
    for step in (1, 2):
        several.save(step, tree, {}, metric=None)
        several.wait()
    path = tmp_path / "00000002/pieces/00000.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)

    def restore(group):
        reader = Checkpoints(tmp_path, keep_last=3, keep_best=0, fingerprints={}, group=group)
        return reader.restore(shapes(tree))

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(restore, groups(2)):
            assert found.step == 1
            assert "00000.safetensors has been changed" in found.warnings[0]


def test_digests_are_in_the_notes_of_each_file(folder):
    path = folder / "pieces" / "00000.safetensors"
    notes = shards.safetensors.open_noted(path)[1]
    head = path.read_bytes()
    length = int.from_bytes(head[:8], "little")
    assert notes == json.loads(head[8 : 8 + length])["__metadata__"]
    assert all(len(value) == 64 for value in notes.values())

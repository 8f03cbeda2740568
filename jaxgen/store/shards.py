"""A checkpoint's arrays in shards: each process of a run writes those that its devices hold.

    00000200/pieces/00003.safetensors    of process 3; any safetensors reader opens it

A shard's name, "params/layers/attn/q@0:2,8:16", is its array and its slices of it; the file's
metadata holds the sha256 of each. Reading assembles the shards for any mesh and any number of
processes, and reads only those needed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.store import pytree_io, safetensors
from jaxgen.store.manifest import DamageError
from jaxgen.store.pytree_io import Leaf
from jaxgen.store.safetensors import Tensor

FOLDER = "pieces"
Bounds = tuple[tuple[int, int], ...]  # (start, stop) of each axis


def to_host(tree: Any, *, first: bool) -> tuple[dict[str, Leaf], dict[str, np.ndarray]]:
    """Return ({name: Leaf} of all, {shard: array} of this process), both valid after donation.

    One process writes one of several replicas. first: this is process 0, which writes the arrays
    that every process has a local copy of. Raises TypeError as `pytree_io.to_host` does.
    """
    described: dict[str, Leaf] = {}
    mine: dict[str, Any] = {}
    for name, leaf in pytree_io.named_leaves(tree).items():
        key = pytree_io.key_impl(leaf)
        plain = jax.random.key_data(leaf) if key else leaf
        if isinstance(plain, jax.Array):
            described[name] = Leaf(plain.dtype.name, plain.shape, key)
            mine |= _own(name, plain, first)
        else:
            array = np.asarray(plain)
            described[name] = Leaf(array.dtype.name, array.shape, key)
            if first:
                mine[shard_name(name, tuple((0, n) for n in array.shape))] = plain
    for part in mine.values():  # all transfers start before the first is waited for
        if isinstance(part, jax.Array):
            part.copy_to_host_async()
    return described, {name: pytree_io.to_numpy(name, part) for name, part in mine.items()}


def _own(name: str, array: jax.Array, first: bool) -> dict[str, jax.Array]:
    if array.is_fully_addressable and not first:
        return {}
    return {
        shard_name(name, bounds(shard.index, array.shape)): shard.data
        for shard in array.addressable_shards
        if shard.replica_id == 0
    }


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    """Return (start, stop) of each axis of an array's part."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def shard_name(name: str, where: Bounds) -> str:
    """Return the name of a shard."""
    return f"{name}@{','.join(f'{start}:{stop}' for start, stop in where)}"


def digests(mine: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the sha256 (hex) of each shard."""
    return {name: pytree_io.digest(array) for name, array in mine.items()}


def write_shards(
    path: Path, mine: Mapping[str, np.ndarray], sums: Mapping[str, str]
) -> dict[str, Any]:
    """Write a process's shards and their digests; OSErrors pass through.

    Returns what a manifest says of the file.
    """
    stored = {name: _stored(array) for name, array in mine.items()}
    shapes = {name: (array.dtype.name, array.shape) for name, array in stored.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    safetensors.write_safetensors(path, shapes, stored.__getitem__, sums, digest=digest)
    files.sync_file(path)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _stored(array: np.ndarray) -> np.ndarray:
    # dtypes that safetensors has no name for are stored as bytes; the manifest has their dtype.
    writable = array.dtype.name in safetensors.WRITABLE
    return array if writable else np.asarray(array, order="C").reshape(-1).view(np.uint8)


class Shard(NamedTuple):
    """A slice of an array on disk, with its sha256."""

    where: Bounds
    tensor: Tensor
    sha256: str | None


class ShardReader:
    """Reads the shards of one checkpoint on demand.

    check: compare each with its sha256. Raises DamageError for a file that is no sound
    safetensors or a shard that has been changed or is missing.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, Leaf], *, check: bool) -> None:
        self.folder, self.arrays, self.check = folder / FOLDER, arrays, check
        self._shards: dict[str, list[Shard]] = {}
        self._read: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._index_file(path)

    def sums(self) -> dict[str, str | None]:
        """Return the sha256 of each shard, by its name."""
        return {
            shard_name(name, shard.where): shard.sha256
            for name, shards in self._shards.items()
            for shard in shards
        }

    def missing(self) -> list[str]:
        """Return the arrays with missing shards, judged by the files' headers."""
        held = {
            name: sum(math.prod(stop - start for start, stop in shard.where) for shard in shards)
            for name, shards in self._shards.items()
        }
        sizes = {name: math.prod(leaf.shape) for name, leaf in self.arrays.items()}
        return [name for name, size in sizes.items() if held.get(name, 0) != size]

    def read_array(self, name: str) -> np.ndarray:
        """Return a whole array."""
        return self.read_region(name, tuple(slice(0, size) for size in self.arrays[name].shape))

    def read_region(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a slice of an array; its shards stay in memory until another array is read."""
        leaf = self.arrays[name]
        want = bounds(index, leaf.shape)
        dtype = jnp.dtype(leaf.dtype)
        out = np.empty([stop - start for start, stop in want], dtype)
        filled = 0
        for shard in self._shards.get(name, ()):
            overlap = [
                (max(a, c), min(b, d)) for (a, b), (c, d) in zip(want, shard.where, strict=True)
            ]
            if any(start >= stop for start, stop in overlap):
                continue
            part = self._read_shard(name, shard, dtype)
            source = [
                slice(a - w, b - w) for (a, b), (w, _) in zip(overlap, shard.where, strict=True)
            ]
            target = [slice(a - w, b - w) for (a, b), (w, _) in zip(overlap, want, strict=True)]
            out[tuple(target)] = part[tuple(source)]
            filled += math.prod(stop - start for start, stop in overlap)
        if filled != out.size:
            raise DamageError(f"{self.folder}: {filled} of {out.size} numbers of {name} are there")
        return out

    def _read_shard(self, name: str, shard: Shard, dtype: np.dtype) -> np.ndarray:
        full = shard_name(name, shard.where)
        if full not in self._read:
            if not any(other.startswith(f"{name}@") for other in self._read):
                self._read.clear()
            try:
                raw = safetensors.read_tensor(shard.tensor)
            except CheckpointError as error:
                raise DamageError(str(error)) from error
            array = raw if raw.dtype == dtype else raw.view(dtype)
            array = array.reshape([stop - start for start, stop in shard.where])
            if self.check and pytree_io.digest(array) != shard.sha256:
                raise DamageError(f"{shard.tensor.path}: piece {full} has been changed")
            self._read[full] = array
        return self._read[full]

    def _index_file(self, path: Path) -> None:
        try:
            tensors, notes = safetensors.open_noted(path)
        except CheckpointError as error:
            raise DamageError(str(error)) from error
        for full, tensor in tensors.items():
            name, _, text = full.rpartition("@")
            try:
                pairs = [part.split(":") for part in text.split(",") if part]
                where = tuple((int(start), int(stop)) for start, stop in pairs)
                valid = len(where) == len(self.arrays[name].shape)
            except (ValueError, KeyError):
                valid, where = False, ()
            if not valid:
                raise DamageError(f"{path}: {full!r} is no piece of this checkpoint")
            self._shards.setdefault(name, []).append(Shard(where, tensor, notes.get(full)))


def place_shards(abstract: Any, region: Any) -> Any:
    """Return a tree like `abstract`, with its slice of each leaf on each device of this process.

    region: (name, index) -> array. Leaves of the abstract tree must have shardings.
    """
    structure = jax.tree_util.tree_structure(abstract)
    named = pytree_io.named_leaves(abstract)
    leaves = [_place_leaf(name, like, region) for name, like in named.items()]
    return jax.tree_util.tree_unflatten(structure, leaves)


def _place_leaf(name: str, like: Any, region: Any) -> Any:
    want = pytree_io.spec_of(like)
    if not isinstance(getattr(like, "sharding", None), jax.sharding.NamedSharding):
        full = region(name, tuple(slice(0, size) for size in want.shape))
        return pytree_io.place_like(name, full, like)
    where = like.sharding
    if want.key:  # the numbers of a key are one axis more
        where = jax.sharding.NamedSharding(where.mesh, where.spec)
    parts: dict[Bounds, np.ndarray] = {}
    placed = []
    for device, index in where.addressable_devices_indices_map(want.shape).items():
        box = bounds(index or (), want.shape)
        if box not in parts:
            parts[box] = region(name, index or ())
        there = jax.device_put(parts[box], device)
        # On CPU, JAX may alias numpy's memory even when told not to, and could then not donate it.
        placed.append(there.copy() if device.platform == "cpu" else there)
    array = jax.make_array_from_single_device_arrays(want.shape, where, placed)
    return jax.random.wrap_key_data(array, impl=want.key) if want.key else array

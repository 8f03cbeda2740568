"""A checkpoint's arrays in pieces: each process of a run writes those that its devices hold.

    00000200/pieces/00003.safetensors    of process 3; any safetensors reader opens it

A piece is called "params/layers/attn/q@0:2,8:16", its array and where it lies in it; the file's
notes hold the sha256 of each. Reading fits the pieces together for any mesh and any number of
processes, and reads no others than are needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.store import leaves, safetensors
from jaxgen.store.leaves import Leaf
from jaxgen.store.manifest import DamageError
from jaxgen.store.safetensors import Tensor

PIECES = "pieces"
Bounds = tuple[tuple[int, int], ...]  # (start, stop) of each axis


def to_host(tree: Any, *, first: bool) -> tuple[dict[str, Leaf], dict[str, np.ndarray]]:
    """Return ({name: Leaf} of all, {piece: array} of this process), which last.

    Of what several devices hold alike, one process writes it; first: this is process 0, which
    writes what all processes have on their own. Raises TypeError as `leaves.to_host` does.
    """
    described: dict[str, Leaf] = {}
    mine: dict[str, Any] = {}
    for name, leaf in leaves.named(tree).items():
        key = leaves.generator(leaf)
        plain = jax.random.key_data(leaf) if key else leaf
        if isinstance(plain, jax.Array):
            described[name] = Leaf(plain.dtype.name, plain.shape, key)
            mine |= _own(name, plain, first)
        else:
            array = np.asarray(plain)
            described[name] = Leaf(array.dtype.name, array.shape, key)
            if first:
                mine[called(name, tuple((0, n) for n in array.shape))] = plain
    for part in mine.values():  # all transfers start before the first is waited for
        if isinstance(part, jax.Array):
            part.copy_to_host_async()
    return described, {name: leaves.host(name, part) for name, part in mine.items()}


def _own(name: str, array: jax.Array, first: bool) -> dict[str, jax.Array]:
    if array.is_fully_addressable and not first:
        return {}
    return {
        called(name, bounds(shard.index, array.shape)): shard.data
        for shard in array.addressable_shards
        if shard.replica_id == 0
    }


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    """Return (start, stop) of each axis of an array's part."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def called(name: str, where: Bounds) -> str:
    """Return the name of a piece."""
    return f"{name}@{','.join(f'{start}:{stop}' for start, stop in where)}"


def digests(mine: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the sha256 (hex) of each piece."""
    return {name: leaves.digest(array) for name, array in mine.items()}


def write(path: Path, mine: Mapping[str, np.ndarray], sums: Mapping[str, str]) -> None:
    """Write a process's pieces and their digests to disk; OSErrors pass through."""
    stored = {name: _stored(array) for name, array in mine.items()}
    shapes = {name: (array.dtype.name, array.shape) for name, array in stored.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(path, shapes, stored.__getitem__, sums)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stored(array: np.ndarray) -> np.ndarray:
    # What safetensors has no name for goes as bytes; its array says what they are.
    known = array.dtype.name in safetensors.WRITABLE
    return array if known else np.asarray(array, order="C").reshape(-1).view(np.uint8)


class Piece(NamedTuple):
    """Where a part of an array is on disk, and what it must be."""

    where: Bounds
    tensor: Tensor
    sha256: str | None


class Pieces:
    """The pieces of one checkpoint, read as they are asked for.

    check: compare each with its sha256. Raises DamageError for a file that is no sound
    safetensors or a piece that has been changed or is missing.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, Leaf], *, check: bool) -> None:
        self.folder, self.arrays, self.check = folder / PIECES, arrays, check
        self._found: dict[str, list[Piece]] = {}
        self._read: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._enter(path)

    def sums(self) -> dict[str, str | None]:
        """Return the sha256 of each piece, by its name."""
        return {
            called(name, piece.where): piece.sha256
            for name, found in self._found.items()
            for piece in found
        }

    def missing(self) -> list[str]:
        """Return the arrays that the pieces don't make whole, by what their files' headers say."""
        held = {
            name: sum(math.prod(stop - start for start, stop in piece.where) for piece in found)
            for name, found in self._found.items()
        }
        wanted = {name: math.prod(leaf.shape) for name, leaf in self.arrays.items()}
        return [name for name, size in wanted.items() if held.get(name, 0) != size]

    def whole(self, name: str) -> np.ndarray:
        """Return an array, all of it."""
        return self.region(name, tuple(slice(0, size) for size in self.arrays[name].shape))

    def region(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of an array; what is read stays until another array is asked for."""
        leaf = self.arrays[name]
        want = bounds(index, leaf.shape)
        dtype = jnp.dtype(leaf.dtype)
        out = np.empty([stop - start for start, stop in want], dtype)
        filled = 0
        for piece in self._found.get(name, ()):
            shared = [
                (max(a, c), min(b, d)) for (a, b), (c, d) in zip(want, piece.where, strict=True)
            ]
            if any(start >= stop for start, stop in shared):
                continue
            part = self._part(name, piece, dtype)
            source = [
                slice(a - w, b - w) for (a, b), (w, _) in zip(shared, piece.where, strict=True)
            ]
            target = [slice(a - w, b - w) for (a, b), (w, _) in zip(shared, want, strict=True)]
            out[tuple(target)] = part[tuple(source)]
            filled += math.prod(stop - start for start, stop in shared)
        if filled != out.size:
            raise DamageError(f"{self.folder}: {filled} of {out.size} numbers of {name} are there")
        return out

    def _part(self, name: str, piece: Piece, dtype: np.dtype) -> np.ndarray:
        full = called(name, piece.where)
        if full not in self._read:
            if not any(other.startswith(f"{name}@") for other in self._read):
                self._read.clear()
            try:
                raw = safetensors.read(piece.tensor)
            except CheckpointError as error:
                raise DamageError(str(error)) from error
            array = raw if raw.dtype == dtype else raw.view(dtype)
            array = array.reshape([stop - start for start, stop in piece.where])
            if self.check and leaves.digest(array) != piece.sha256:
                raise DamageError(f"{piece.tensor.path}: piece {full} has been changed")
            self._read[full] = array
        return self._read[full]

    def _enter(self, path: Path) -> None:
        try:
            tensors, notes = safetensors.open_noted(path)
        except CheckpointError as error:
            raise DamageError(str(error)) from error
        for full, tensor in tensors.items():
            name, _, text = full.rpartition("@")
            try:
                pairs = [part.split(":") for part in text.split(",") if part]
                where = tuple((int(start), int(stop)) for start, stop in pairs)
                known = len(where) == len(self.arrays[name].shape)
            except (ValueError, KeyError):
                known, where = False, ()
            if not known:
                raise DamageError(f"{path}: {full!r} is no piece of this checkpoint")
            self._found.setdefault(name, []).append(Piece(where, tensor, notes.get(full)))


def spread(abstract: Any, region: Any) -> Any:
    """Return a tree like `abstract`, each device of this process given its part of each leaf.

    region: (name, index) -> array. Leaves of the abstract tree must have shardings.
    """
    structure = jax.tree_util.tree_structure(abstract)
    found = [_placed(name, like, region) for name, like in leaves.named(abstract).items()]
    return jax.tree_util.tree_unflatten(structure, found)


def _placed(name: str, like: Any, region: Any) -> Any:
    want = leaves.wanted(like)
    if not isinstance(getattr(like, "sharding", None), jax.sharding.NamedSharding):
        whole = region(name, tuple(slice(0, size) for size in want.shape))
        return leaves.place(name, whole, like)
    where = like.sharding
    if want.key:  # the numbers of a key are one axis more
        where = jax.sharding.NamedSharding(where.mesh, where.spec)
    parts: dict[Bounds, np.ndarray] = {}
    placed = []
    for device, index in where.addressable_devices_indices_map(want.shape).items():
        place = bounds(index or (), want.shape)
        if place not in parts:
            parts[place] = region(name, index or ())
        there = jax.device_put(parts[place], device)
        # A processor that borrows numpy's memory, also when told not to, can't give it to a step.
        placed.append(there.copy() if device.platform == "cpu" else there)
    array = jax.make_array_from_single_device_arrays(want.shape, where, placed)
    return jax.random.wrap_key_data(array, impl=want.key) if want.key else array

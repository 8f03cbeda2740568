"""Named arrays in a folder, as Orbax writes them: one flat dict of paths, zarr3 in OCDBT.

    orbax.checkpoint.PyTreeCheckpointer().restore("run/checkpoints/00000200/arrays")

reads them without jaxgen. Names stay flat because Orbax joins nested ones with ".", so that
{"a.b": x, "a": {"b": y}} would lose x without a word.
"""

from __future__ import annotations

import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.store.disk_space import first_line
from jaxgen.store.manifest import DamageError
from jaxgen.store.pytree_io import Leaf, digest

# Orbax finds the parts of a save by a glob of their whole path, and TensorStore reads a backslash
# as a slash. Characters outside of these are never shown to them.
TAME = re.compile(r"[A-Za-z0-9_./ +=,:@-]*")


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays into the new `folder`; any error of Orbax or the system passes through."""
    import orbax.checkpoint as ocp

    # Orbax refuses arrays without elements; the manifest says all there is to know of them.
    full = {name: _stored(array) for name, array in arrays.items() if array.size}
    if not full:
        folder.mkdir()
        return
    with _quiet(), _tame(folder) as tame, ocp.Checkpointer(_handler()) as checkpointer:
        checkpointer.save(tame, args=ocp.args.PyTreeSave(full))


def check(folder: Path, leaves: Mapping[str, Leaf]) -> None:
    """Open again what `write` has written; CheckpointError naming what is not there.

    Reads names, shapes and dtypes as `read` would find them, and the list of stored chunks, but no
    numbers.
    """
    import orbax.checkpoint as ocp
    import tensorstore

    full = {name: leaf for name, leaf in leaves.items() if math.prod(leaf.shape)}
    if not full:
        return
    try:
        with _quiet(), _tame(folder) as tame, ocp.Checkpointer(_handler()) as checkpointer:
            metadata = dict(checkpointer.metadata(tame).item_metadata)
            spec = {"driver": "file", "path": f"{tame}/"}
            base = tensorstore.KvStore.open({"driver": "ocdbt", "base": spec}).result()
            keys = {key.decode() for key in base.list().result()}
    except Exception as error:
        why = first_line(error)
        raise CheckpointError(f"{folder} can't be opened after writing it: {why}") from error
    for name, leaf in full.items():
        dtype = _dtype(leaf.dtype)
        stored = (dtype if _native(dtype) else np.dtype(np.uint8)).name
        there = metadata.get(name)
        if there is None or (str(there.dtype), tuple(there.shape)) != (stored, leaf.shape):
            raise CheckpointError(f"{folder}: {name} was not written")
        edges = there.storage.chunk_shape if there.storage else leaf.shape
        grid = [-(-size // edge) for size, edge in zip(leaf.shape, edges, strict=True)]
        for index in np.ndindex(*grid):
            if "/".join([name, "c", *map(str, index)]) not in keys:
                raise CheckpointError(f"{folder}: a part of {name} was not written")


def read_arrays(folder: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Return the arrays of these names; any error of Orbax or the system passes through."""
    import orbax.checkpoint as ocp

    full = [name for name, leaf in leaves.items() if np.prod(leaf.shape, dtype=int)]
    loaded: dict[str, np.ndarray] = {}
    if full:
        restore = ocp.args.PyTreeRestore(
            item=dict.fromkeys(full, 0),
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in full},
            partial_restore=True,
        )
        with _quiet(), _tame(folder) as tame, ocp.Checkpointer(_handler()) as checkpointer:
            loaded = checkpointer.restore(tame, args=restore)
    arrays = {}
    for name, leaf in leaves.items():
        dtype = _dtype(leaf.dtype)
        array = loaded[name] if name in loaded else np.zeros(leaf.shape, dtype)
        arrays[name] = array if _native(dtype) else array.view(dtype)
    return arrays


def read_sound(
    folder: Path, leaves: Mapping[str, Leaf], sums: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Return the arrays of these names; DamageError for one that is not as it was written.

    sums: the sha256 of each; {} compares types and shapes alone.
    """
    try:
        arrays = read_arrays(folder, leaves)
    except Exception as error:
        # Orbax passes on whatever its storage says of damaged bytes, in any type.
        raise DamageError(f"{folder} can't be read: {first_line(error)}") from error

    def sound(name: str) -> bool:
        array, leaf = arrays[name], leaves[name]
        same = (array.dtype.name, array.shape) == (leaf.dtype, leaf.shape)
        return same and (not sums or digest(array) == sums[name])

    for name, is_sound in zip(arrays, files.each(sound, arrays), strict=True):
        if not is_sound:
            raise DamageError(f"{folder}: array {name} has been changed")
    return arrays


def _handler():
    import orbax.checkpoint as ocp

    # Compression would save a tenth of the disk and double the time.
    return ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False)


@contextmanager
def _tame(folder: Path) -> Iterator[Path]:
    """Yield a path of `folder` that no library takes for a pattern: its own, or by a link."""
    folder = folder.absolute()
    if TAME.fullmatch(str(folder)):
        yield folder
        return
    temporary = tempfile.gettempdir()
    temporary = temporary if TAME.fullmatch(temporary) else "/tmp"  # noqa: S108 - only the link lies there
    with tempfile.TemporaryDirectory(prefix="jaxgen-", dir=temporary) as private:
        link = Path(private) / "folder"
        link.symlink_to(folder.parent, target_is_directory=True)
        yield link / folder.name


def _dtype(name: str) -> np.dtype:
    import jax.numpy as jnp

    return jnp.dtype(name)


def _native(dtype: np.dtype) -> bool:
    return dtype.kind in "biufc" or dtype.name == "bfloat16"


def _stored(array: np.ndarray) -> np.ndarray:
    # Not every build of TensorStore knows every dtype of 8 bits and less.
    return array if _native(array.dtype) else array.view(np.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's logged tracebacks off the terminal; the error itself is raised anyway."""

    def ours(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(ours)
    try:
        yield
    finally:
        logger.removeFilter(ours)

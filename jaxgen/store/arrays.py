"""Named arrays in a folder, as Orbax writes them: one flat dict of paths, zarr3 in OCDBT.

    orbax.checkpoint.PyTreeCheckpointer().restore("run/checkpoints/00000200/arrays")

reads them without jaxgen. Names stay flat because Orbax joins nested ones with ".", so that
{"a.b": x, "a": {"b": y}} would lose x without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxgen.store.leaves import Leaf


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays into the new `folder`; any error of Orbax or the system passes through."""
    import orbax.checkpoint as ocp

    # Orbax refuses arrays without elements; the manifest says all there is to know of them.
    full = {name: _stored(array) for name, array in arrays.items() if array.size}
    if not full:
        folder.mkdir()
        return
    with _quiet(), ocp.Checkpointer(_handler()) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(full))


def read(folder: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Return the arrays of these names; any error of Orbax or the system passes through."""
    import orbax.checkpoint as ocp

    full = [name for name, leaf in leaves.items() if np.prod(leaf.shape, dtype=int)]
    found: dict[str, np.ndarray] = {}
    if full:
        restore = ocp.args.PyTreeRestore(
            item=dict.fromkeys(full, 0),
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in full},
            partial_restore=True,
        )
        with _quiet(), ocp.Checkpointer(_handler()) as checkpointer:
            found = checkpointer.restore(folder.absolute(), args=restore)
    arrays = {}
    for name, leaf in leaves.items():
        dtype = _dtype(leaf.dtype)
        array = found[name] if name in found else np.zeros(leaf.shape, dtype)
        arrays[name] = array if _native(dtype) else array.view(dtype)
    return arrays


def _handler():
    import orbax.checkpoint as ocp

    # Compression would save a tenth of the disk and double the time.
    return ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False)


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

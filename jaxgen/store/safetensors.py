"""The safetensors container: a header that is checked before it is believed, then raw tensors.

Format: https://github.com/huggingface/safetensors. Files are read by position, never mapped into
memory, so that one which shrinks meanwhile is an error and not the end of the process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.mesh.place import aligned

WHAT = "safetensors file"
MAX_HEADER = 100_000_000  # bytes, as in the format's own library
MAX_TENSORS = 100_000
MAX_AXES = 16
# Bits of each dtype, and what numpy (with ml_dtypes) calls it; None: it is not read.
DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F32": (32, "float32"),
    "F64": (64, "float64"),
    "F8_E4M3": (8, None),
    "F8_E5M2": (8, None),
    "F8_E8M0": (8, None),
    "F8_E4M3FNUZ": (8, None),
    "F8_E5M2FNUZ": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
    "C64": (64, None),
}
WRITABLE = {name: ours for ours, (_, name) in DTYPES.items() if name}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Tensor(NamedTuple):
    """Where a tensor lies: bytes [begin, end) of a file, in C order, little endian."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> np.ndarray:
        """Return its values, as `read_tensor` does."""
        return read_tensor(self)


def open_file(path: Path) -> dict[str, Tensor]:
    """Return {name: Tensor} of a file; CheckpointError for any that is not exactly a safetensors.

    Refused are a header longer than the file, that is no JSON or holds a key twice, and tensors
    that overlap, leave a hole, end elsewhere than the file, or whose size is not their shape's.
    """
    return open_noted(path)[0]


def open_noted(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return `open_file`'s tensors, and the notes that the writer left in the header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            length = _header_length(path, head, size)
            file.seek(8)
            raw = file.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such {WHAT}; correct the path") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    try:
        header, notes = _parse(raw)
        return _tensors(path, header, 8 + length, size), notes
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no sound {WHAT}: {error}; fetch it again") from error


def read_tensor(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values, laid as `mesh.place.aligned` does.

    Raises CheckpointError if the file has changed or can't be read.
    """
    name = DTYPES[tensor.dtype][1]
    if name is None:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name!r} is {tensor.dtype}, which is not read"
        )
    array = aligned(tensor.shape, _dtype(name))
    fill(array.reshape(-1).view(np.uint8), tensor.path, tensor.begin)
    return array


def fill(buffer: np.ndarray, path: Path, begin: int) -> None:
    """Read the bytes of a file from `begin` on into a buffer [bytes] uint8.

    Raises CheckpointError if the file ends before the buffer does, or can't be read.
    """
    rest = buffer.data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            while rest and (count := file.readinto(rest)):
                rest = rest[count:]
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if rest:
        raise CheckpointError(f"{path} has shrunk while it was read; fetch it again")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    produce: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
    *,
    digest: Any = None,
) -> None:
    """Write a new file tensor by tensor, so that one at a time is in memory.

    tensors: name -> (dtype as numpy calls it, shape). digest: a hash of hashlib, which gets all
    that is written. OSErrors of the system pass through.
    """
    # As the format's own library orders them: wide ones first keeps each aligned to its width.
    order = sorted(tensors, key=lambda name: (-_dtype(tensors[name][0]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape = tensors[name]
        end = offset + _dtype(dtype).itemsize * math.prod(shape)
        header[name] = {
            "dtype": WRITABLE[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("xb") as file:

        def put(content: Any) -> None:
            file.write(content)
            if digest is not None:
                digest.update(content)

        put(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            array = np.asarray(produce(name), order="C")
            want = tensors[name]
            assert (array.dtype.name, array.shape) == (want[0], tuple(want[1])), (name, want)
            put(array.reshape(-1).view(np.uint8).data)


def _dtype(name: str) -> np.dtype:
    import jax.numpy as jnp

    return jnp.dtype(name)


def _header_length(path: Path, head: bytes, size: int) -> int:
    files.refuse_impostor(path, WHAT, head)
    if size < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few for a {WHAT}; fetch it again")
    length = int.from_bytes(head[:8], "little")
    # A sound header may by chance be as long as a pickle's first bytes spell: only then look.
    if length > size - 8 and head.startswith(_PICKLES):
        raise CheckpointError(
            f"{path} is a pickle under another name, and pickle is not read: it could run any "
            f"program; convert it to safetensors where you trust it"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{path} is no sound {WHAT}, or a truncated one: its header should have {length} bytes "
            f"but the file has {size}; fetch it again"
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path}: its header of {length} bytes is over {MAX_HEADER}")
    return length


def _parse(raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=files.once)
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is no mapping of strings")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it names {len(header)} tensors, more than {MAX_TENSORS}")
    return header, metadata


def _tensors(path: Path, header: dict[str, Any], start: int, size: int) -> dict[str, Tensor]:
    tensors = [_tensor(path, name, entry, start) for name, entry in header.items()]
    offset = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != offset:
            word = "overlaps another" if tensor.begin < offset else "leaves a hole before it"
            raise ValueError(f"{tensor.name!r} {word}")
        offset = tensor.end
    if offset != size:
        word = "is truncated" if offset > size else "has bytes that belong to no tensor"
        raise ValueError(f"it {word}: its tensors end at byte {offset} of {size}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} has not just a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} is of unknown dtype {dtype!r:.40}")
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise ValueError(f"{name!r} has the impossible shape {shape!r:.60}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r} has the impossible data_offsets {offsets!r:.60}")
    bits, length = math.prod(shape) * DTYPES[dtype][0], offsets[1] - offsets[0]
    if bits != 8 * length:
        raise ValueError(f"{name!r} is {dtype}{shape}, but {length} bytes are said to hold it")
    return Tensor(path, name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)

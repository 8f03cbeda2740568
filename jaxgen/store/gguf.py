"""The GGUF container of llama.cpp: a header that is checked before it is believed, then tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files are read by position and
tensor by tensor, never mapped into memory, so that one which shrinks meanwhile is an error and not
the end of the process.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.store import gguf_blocks
from jaxgen.store.gguf_blocks import FORMATS, PLAIN
from jaxgen.store.safetensors import fill

SUFFIX = ".gguf"
WHAT = "GGUF file"
MAGIC, VERSION, READ = b"GGUF", 3, (2, 3)
ALIGNMENT = 32  # of tensors, where the file says no other
MAX_HEADER = 100_000_000  # bytes
MAX_TENSORS = 100_000
MAX_VALUES = 8_000_000  # texts, arrays and keys of a header
MAX_KEY, MAX_AXES, MAX_DEPTH = 65_535, 4, 4
FIRST_READ = 4 << 20
# Types of values: id -> numpy's name; texts and arrays beside them.
NUMBERS: dict[int, str] = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?")))
NUMBERS |= {10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, TEXT, ARRAY = 7, 8, 9
NAMES = {form.id: name for name, form in FORMATS.items()}


class Tensor(NamedTuple):
    """Where a tensor lies: bytes [begin, end) of a file, rows of blocks of a format.

    shape: as numpy orders axes, the last one the fastest: the reverse of how the file does.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Contents(NamedTuple):
    """What a header says: metadata (arrays of numbers as numpy's, of texts as lists), tensors."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def open_file(path: Path) -> Contents:
    """Return the header of a file; CheckpointError for any that is not exactly a GGUF file.

    Refused are counts and lengths beyond the file's end, types, keys and names that are not known
    or there twice, and tensors that overlap, leave a hole, or end elsewhere than the file.
    """
    try:
        about = path.stat()
        return _open(path, about.st_size, (about.st_mtime_ns, about.st_ino))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such {WHAT}; correct the path") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no sound {WHAT}: {error}; fetch it again") from error


@lru_cache(maxsize=1)
def _open(path: Path, size: int, version: tuple[int, int]) -> Contents:
    """Return the header of this version of a file, read once for all that ask for a part."""
    del version
    with path.open("rb") as file:
        files.refuse_impostor(path, WHAT, file.read(512))
        file.seek(0)
        return _Header(file, size).contents(path)


def read_rows(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bytes as they are stored, [..., bytes of a row] uint8.

    Raises CheckpointError if the file has changed or can't be read.
    """
    raw = np.empty(tensor.end - tensor.begin, np.uint8)
    fill(raw, tensor.path, tensor.begin)
    return raw.reshape(*tensor.shape[:-1], -1)


def values(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Return the numbers of some rows of a tensor: of a plain format in its dtype, else float32.

    Raises CheckpointError for a format that is not read.
    """
    if tensor.dtype in PLAIN:
        return rows.view(_dtype(PLAIN[tensor.dtype]))
    try:
        return gguf_blocks.dequantize(rows, tensor.dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{tensor.path}: {tensor.name!r} is of format {error}") from None


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    produce: Callable[[str], np.ndarray],
) -> None:
    """Write a new file tensor by tensor, so that one at a time is in memory.

    Args:
        path: of the file, which must not exist.
        metadata: of texts, bools, numpy numbers, and arrays or lists of one of these.
        tensors: name -> (format, shape as numpy orders axes).
        produce: name -> the tensor's values, float32 or of its own plain format; or its blocks,
            uint8 [..., bytes of a row].

    Raises:
        OSErrors of the system pass through.
    """
    raw = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        kind, coded = _coded(value)
        raw += _text(key) + struct.pack("<I", kind) + coded
    offset = 0
    for name, (form, shape) in tensors.items():
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        raw += _text(name) + axes + struct.pack("<IQ", FORMATS[form].id, offset)
        offset += _nbytes(form, shape)
        offset += -offset % ALIGNMENT
    with path.open("xb") as file:
        file.write(raw + bytes(-len(raw) % ALIGNMENT))
        for name, (form, shape) in tensors.items():
            array = np.asarray(produce(name), order="C")
            in_blocks = form not in PLAIN and array.dtype == np.uint8
            assert in_blocks or array.shape == tuple(shape), (name, array.shape, shape)
            if form in PLAIN:
                block = array.astype(_dtype(PLAIN[form]), copy=False).reshape(-1).view(np.uint8)
            else:
                block = (array if in_blocks else gguf_blocks.quantize(array, form)).reshape(-1)
            assert block.size == _nbytes(form, shape), name
            file.write(block.data)
            file.write(bytes(-block.size % ALIGNMENT))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _coded(value: Any) -> tuple[int, bytes]:
    """Return (type, bytes) of a value of the metadata."""
    if isinstance(value, str):
        return TEXT, _text(value)
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        head = struct.pack("<IQ", TEXT, len(value))
        return ARRAY, head + b"".join(map(_text, value))
    array = np.asarray(value)
    kind = next(kind for kind, name in NUMBERS.items() if np.dtype(name) == array.dtype)
    if array.ndim == 0:
        return kind, array.tobytes()
    return ARRAY, struct.pack("<IQ", kind, array.size) + array.tobytes()


def _nbytes(form: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) // FORMATS[form].values * FORMATS[form].bytes


def _dtype(name: str) -> np.dtype:
    import jax.numpy as jnp

    return jnp.dtype(name)


class _Header:
    """Reads a header on demand; every length is compared with the file's before it is used."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.raw, self.at, self.room = b"", 0, MAX_VALUES

    def contents(self, path: Path) -> Contents:
        """Return all of it; ValueError that says what is wrong."""
        if (magic := self.take(4)) != MAGIC:
            raise ValueError(f"it begins with {magic!r}, not {MAGIC!r}")
        version = self.number("<u4")
        if version not in READ:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            word = " of big-endian machines" if swapped in READ else ""
            known = " and ".join(map(str, READ))
            raise ValueError(
                f"it is of version {swapped if word else version}{word}, but {known} of "
                f"little-endian ones are read"
            )
        tensors, pairs = self.number("<u8"), self.number("<u8")
        self.expect(pairs, 13, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.text("a key", MAX_KEY)
            if not key or key in metadata:
                raise ValueError(f"its key {key!r:.60} is {'there twice' if key else 'empty'}")
            metadata[key] = self.value(key, self.number("<u4"), 0)
        if tensors > MAX_TENSORS:
            raise ValueError(f"it names {tensors} tensors, more than {MAX_TENSORS}")
        self.expect(tensors, 24, "tensors")
        rows = [self.tensor(path) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment.bit_count() > 1:
            raise ValueError(f"general.alignment={alignment!r:.40} is no power of two from 8 on")
        return Contents(metadata, self.laid(rows, alignment))

    def grow(self, end: int) -> None:
        """Read on, so that bytes up to `end` are there."""
        if end > self.size:
            raise ValueError(
                f"its header should go on to byte {end}, but the file has {self.size}, or is "
                f"truncated"
            )
        if end > MAX_HEADER:
            raise ValueError(f"its header is longer than the {MAX_HEADER} bytes that are read")
        want = max(end, 2 * len(self.raw), FIRST_READ)
        self.raw += self.file.read(want - len(self.raw))
        if end > len(self.raw):
            raise ValueError("it has shrunk while it was read")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.at + count
        if end > len(self.raw):
            self.grow(end)
        self.at, begin = end, self.at
        return self.raw[begin:end]

    def number(self, kind: str) -> Any:
        """Return the next number, as Python's."""
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def text(self, what: str, most: int = MAX_HEADER) -> str:
        """Return the next text."""
        length = self.number("<u8")
        if length > most:
            raise ValueError(f"{what} is said to have {length} bytes, more than {most}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} is not UTF-8 at byte {error.start}") from None

    def texts(self, key: str, count: int) -> list[str]:
        """Return the next texts, of which there may be hundreds of thousands."""
        found, at, unpack = [], self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            begin = at + 8
            if begin > len(self.raw):
                self.grow(begin)
            at = begin + unpack(self.raw, at)[0]
            if at > len(self.raw):
                self.grow(at)
            found.append(self.raw[begin:at])
        self.at = at
        try:
            return [raw.decode() for raw in found]
        except UnicodeDecodeError as error:
            raise ValueError(f"{key} holds {error.object!r:.60}, which is not UTF-8") from None

    def value(self, key: str, kind: int, depth: int) -> Any:
        """Return the next value of a type."""
        self.spend(1)
        if kind == TEXT:
            return self.text(f"the text of {key}")
        if kind == ARRAY:
            return self.array(key, depth + 1)
        if kind not in NUMBERS:
            raise ValueError(f"{key} is of the unknown type {kind}")
        return self.numbers(key, kind, 1)[0].item()

    def array(self, key: str, depth: int) -> Any:
        """Return the next array: of numbers as numpy's, else a list."""
        kind, count = self.number("<u4"), self.number("<u8")
        if kind in NUMBERS:
            self.expect(count, np.dtype(NUMBERS[kind]).itemsize, f"numbers of {key}")
            return self.numbers(key, kind, count)
        if kind not in (TEXT, ARRAY):
            raise ValueError(f"{key} is an array of the unknown type {kind}")
        if depth > MAX_DEPTH:
            raise ValueError(f"{key} is an array of arrays, nested more than {MAX_DEPTH} deep")
        self.expect(count, 8 if kind == TEXT else 12, f"values of {key}")
        self.spend(count)
        if kind == TEXT:
            return self.texts(key, count)
        return [self.array(key, depth + 1) for _ in range(count)]

    def numbers(self, key: str, kind: int, count: int) -> np.ndarray:
        """Return the next numbers of a type."""
        dtype = np.dtype(NUMBERS[kind])
        raw = self.take(count * dtype.itemsize)
        if kind == BOOL and max(raw, default=0) > 1:
            raise ValueError(f"{key} holds a truth value that is neither 0 nor 1")
        return np.frombuffer(raw, dtype)

    def expect(self, count: int, least: int, what: str) -> None:
        """Raise ValueError if so many things of so many bytes can't be in the rest of the file."""
        if count * least > self.size - self.at:
            raise ValueError(
                f"it claims {count} {what}, for which the {self.size} bytes of the file are too few"
            )

    def spend(self, count: int) -> None:
        """Raise ValueError where a header holds more values than are read."""
        self.room -= count
        if self.room < 0:
            raise ValueError(f"its header holds more than {MAX_VALUES} values")

    def tensor(self, path: Path) -> Tensor:
        """Return the next row of the table, begin and end counted from the first tensor."""
        name = self.text("the name of a tensor", MAX_KEY)
        axes = self.number("<u4")
        if not 1 <= axes <= MAX_AXES:
            raise ValueError(f"{name!r:.60} has {axes} axes, not 1 to {MAX_AXES}")
        shape = tuple(self.number("<u8") for _ in range(axes))[::-1]
        kind, begin = self.number("<u4"), self.number("<u8")
        if kind not in NAMES:
            raise ValueError(f"{name!r:.60} is of the unknown format {kind}")
        form = FORMATS[NAMES[kind]]
        if 0 in shape or shape[-1] % form.values:
            raise ValueError(
                f"{name!r:.60} is {list(shape)}, but a row of {NAMES[kind]} has a multiple of "
                f"{form.values} values"
            )
        return Tensor(path, name, NAMES[kind], shape, begin, begin + _nbytes(NAMES[kind], shape))

    def laid(self, rows: list[Tensor], alignment: int) -> dict[str, Tensor]:
        """Return {name: Tensor} counted from the file's begin, once all lie as they must."""
        start = self.at + -self.at % alignment
        named: dict[str, Tensor] = {}
        offset = 0
        for tensor in sorted(rows, key=lambda row: (row.begin, row.end)):
            if tensor.name in named:
                raise ValueError(f"the tensor {tensor.name!r:.60} is there twice")
            if tensor.begin != offset + -offset % alignment:
                word = "overlaps another" if tensor.begin < offset else "leaves a hole before it"
                raise ValueError(f"{tensor.name!r:.60} {word}")
            offset = tensor.end
            if start + offset > self.size:
                raise ValueError(
                    f"it is truncated: {tensor.name!r:.60} ends at byte {start + offset} of "
                    f"{self.size}"
                )
            named[tensor.name] = tensor._replace(begin=start + tensor.begin, end=start + offset)
        if self.size - start - offset >= alignment:
            raise ValueError(f"its last tensor ends at byte {start + offset} of {self.size}")
        return {row.name: named[row.name] for row in rows}

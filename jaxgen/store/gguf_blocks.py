"""The number formats of GGUF files: blocks of quantised values to float32 and back.

A quantised row is a sequence of blocks, each a few scales and the values they belong to. Results
equal those of the `gguf` package, and of ggml-quants.c of llama.cpp, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import CheckpointError

CHUNK = 1 << 15  # values decoded at a time, so that they stay in a processor's cache
Decode = Callable[[Any, np.ndarray], None]


class Format(NamedTuple):
    """A number format: its id in a file, values of a block, bytes of a block.

    decode: writes blocks (a structured array [n]) as float32 [n, values]; None: it is not read.
    layout: the dtype of a block. encode: float32 [n, values] to blocks; None: it is not written.
    """

    id: int
    values: int
    bytes: int
    layout: Any = None
    decode: Decode | None = None
    encode: Callable[[np.ndarray], np.ndarray] | None = None


def dequantize(raw: np.ndarray, name: str) -> np.ndarray:
    """Return the float32 values of rows of blocks.

    Args:
        raw: [..., bytes of a row] uint8.
        name: of the format, a key of FORMATS.

    Returns:
        [..., values of a row]. Raises CheckpointError for a format that is not read.
    """
    form = FORMATS[name]
    if form.decode is None:
        raise CheckpointError(not_read(name))
    blocks = raw.reshape(-1).view(form.layout)
    values = np.empty((len(blocks), form.values), np.float32)
    step = max(1, CHUNK // form.values)
    with np.errstate(invalid="ignore", over="ignore"):  # scales that are no numbers
        for start in range(0, len(blocks), step):
            form.decode(blocks[start : start + step], values[start : start + step])
    return values.reshape(*raw.shape[:-1], -1)


def quantize(values: np.ndarray, name: str) -> np.ndarray:
    """Return rows of blocks of float32 values [..., n], n a multiple of the block's length.

    Returns:
        [..., bytes of a row] uint8.
    """
    form = FORMATS[name]
    assert form.encode is not None, name
    values = np.ascontiguousarray(values, np.float32)
    flat = values.reshape(-1, form.values)
    blocks = np.empty(len(flat), form.layout)
    step = max(1, CHUNK // form.values)
    for start in range(0, len(flat), step):
        blocks[start : start + step] = form.encode(flat[start : start + step])
    return blocks.view(np.uint8).reshape(*values.shape[:-1], -1)


def pack(integers: np.ndarray, scale: np.ndarray, name: str) -> np.ndarray:
    """Return rows of blocks that hold integers as they are, with their scales in float16.

    Args:
        integers: [R, C] int8, of a multiple of 32 columns; from -8 to 7 for Q4_0.
        scale: [R, G] float32, each of C / G columns, a multiple of 32.
        name: Q8_0 or Q4_0.

    Returns:
        [R, bytes of a row] uint8.
    """
    form = FORMATS[name]
    shape = (len(integers), integers.shape[1] // form.values)
    blocks: Any = np.empty(shape, form.layout)
    blocks["d"] = np.repeat(scale, blocks.shape[1] // scale.shape[1], axis=1)
    values = integers.reshape(*blocks.shape, form.values)
    if name == "Q4_0":
        nibbles = (values + 8).astype(np.uint8)
        values = nibbles[..., :16] | nibbles[..., 16:] << 4
    blocks["q"] = values
    return blocks.view(np.uint8).reshape(len(integers), -1)


def not_read(name: str) -> str:
    """Return the message for a format that is known and not read."""
    known = ", ".join(name for name, form in FORMATS.items() if form.decode)
    return f"{name} is not read; known are {known}: take a file that is quantised to one of these"


def _plain(blocks: Any, out: np.ndarray) -> None:
    out[:, 0] = blocks


def _bf16(blocks: Any, out: np.ndarray) -> None:
    np.left_shift(blocks, 16, out=out.view(np.uint32)[:, 0], dtype=np.uint32)


def _q8_0(blocks: Any, out: np.ndarray) -> None:
    np.multiply(blocks["q"], blocks["d"].astype(np.float32)[:, None], out=out)


def _q4_0(blocks: Any, out: np.ndarray) -> None:
    _nibbles(blocks["q"], out)
    out -= 8
    out *= blocks["d"].astype(np.float32)[:, None]


def _q4_1(blocks: Any, out: np.ndarray) -> None:
    _nibbles(blocks["q"], out)
    out *= blocks["d"].astype(np.float32)[:, None]
    out += blocks["m"].astype(np.float32)[:, None]


def _q5_0(blocks: Any, out: np.ndarray) -> None:
    _nibbles(blocks["q"], out)
    out += _high_bits(blocks["h"])
    out -= 16
    out *= blocks["d"].astype(np.float32)[:, None]


def _q5_1(blocks: Any, out: np.ndarray) -> None:
    _nibbles(blocks["q"], out)
    out += _high_bits(blocks["h"])
    out *= blocks["d"].astype(np.float32)[:, None]
    out += blocks["m"].astype(np.float32)[:, None]


def _nibbles(packed: np.ndarray, out: np.ndarray) -> None:
    """Write the low halves of the bytes, then the high ones."""
    half = packed.shape[1]
    out[:, :half] = packed & 15
    out[:, half:] = packed >> 4


def _high_bits(packed: np.ndarray) -> np.ndarray:
    """Return the fifth bit of each value, [n, 32] of 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_k(blocks: Any, out: np.ndarray) -> None:
    parts = out.reshape(-1, 4, 2, 32)
    packed = blocks["q"].reshape(-1, 4, 32)
    parts[:, :, 0], parts[:, :, 1] = packed & 15, packed >> 4
    _scale_and_shift(blocks, out)


def _q5_k(blocks: Any, out: np.ndarray) -> None:
    parts = out.reshape(-1, 4, 2, 32)
    packed = blocks["q"].reshape(-1, 4, 32)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    high = (((blocks["h"][:, None] >> shifts) & 1) << 4).reshape(-1, 4, 2, 32)
    parts[:, :, 0], parts[:, :, 1] = packed & 15 | high[:, :, 0], packed >> 4 | high[:, :, 1]
    _scale_and_shift(blocks, out)


def _scale_and_shift(blocks: Any, out: np.ndarray) -> None:
    """Multiply by eight scales and subtract eight minima, six bits each, packed in 12 bytes."""
    low, minimum, both = (blocks["s"][:, i : i + 4] for i in (0, 4, 8))
    scale = np.concatenate([low & 63, both & 15 | low >> 2 & 48], 1)
    shift = np.concatenate([minimum & 63, both >> 4 | minimum >> 2 & 48], 1)
    parts = out.reshape(-1, 8, 32)
    parts *= (blocks["d"].astype(np.float32)[:, None] * scale.astype(np.float32))[..., None]
    parts -= (blocks["m"].astype(np.float32)[:, None] * shift.astype(np.float32))[..., None]


def _q6_k(blocks: Any, out: np.ndarray) -> None:
    packed, high = blocks["q"].reshape(-1, 2, 1, 64), blocks["h"].reshape(-1, 2, 1, 32)
    low = np.concatenate([packed & 15, packed >> 4], 2).reshape(-1, 2, 4, 32)
    shifts = np.asarray([0, 2, 4, 6], np.uint8)[:, None]
    values = (low | (high >> shifts & 3) << 4).view(np.int8) - np.int8(32)
    scale = blocks["d"].astype(np.float32)[:, None] * blocks["s"].astype(np.float32)
    np.multiply(values.reshape(-1, 16, 16), scale[..., None], out=out.reshape(-1, 16, 16))


def _to_q8_0(values: np.ndarray) -> np.ndarray:
    blocks = np.empty(len(values), Q8_0)
    scale = np.abs(values).max(1, keepdims=True) / np.float32(127)
    scaled = values * _inverse(scale)
    # Halves go away from zero, where numpy's own rounding goes to the even number.
    size = np.abs(scaled)
    down = np.floor(size)
    blocks["q"] = np.sign(scaled) * (down + np.floor(2 * (size - down)))
    blocks["d"] = scale[:, 0]
    return blocks


def _to_q4_0(values: np.ndarray) -> np.ndarray:
    blocks = np.empty(len(values), Q4_0)
    largest = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)
    scale = largest / np.float32(-8)
    coded = np.trunc(values * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    blocks["q"] = coded[:, :16] | coded[:, 16:] << 4
    blocks["d"] = scale[:, 0]
    return blocks


def _inverse(scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("h", "u1", 4), ("q", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("h", "u1", 4), ("q", "u1", 16)])
_Q4_K = np.dtype([("d", "<f2"), ("m", "<f2"), ("s", "u1", 12), ("q", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("m", "<f2"), ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)])
_Q6_K = np.dtype([("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), ("d", "<f2")])
# Plain numbers, as numpy (with ml_dtypes) calls them.
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# ggml.h of llama.cpp; those that are not read are there for their sizes.
FORMATS: dict[str, Format] = {
    "F32": Format(0, 1, 4, np.dtype("<f4"), _plain),
    "F16": Format(1, 1, 2, np.dtype("<f2"), _plain),
    "BF16": Format(30, 1, 2, np.dtype("<u2"), _bf16),
    "Q4_0": Format(2, 32, 18, Q4_0, _q4_0, _to_q4_0),
    "Q4_1": Format(3, 32, 20, _Q4_1, _q4_1),
    "Q5_0": Format(6, 32, 22, _Q5_0, _q5_0),
    "Q5_1": Format(7, 32, 24, _Q5_1, _q5_1),
    "Q8_0": Format(8, 32, 34, Q8_0, _q8_0, _to_q8_0),
    "Q4_K": Format(12, 256, 144, _Q4_K, _q4_k),
    "Q5_K": Format(13, 256, 176, _Q5_K, _q5_k),
    "Q6_K": Format(14, 256, 210, _Q6_K, _q6_k),
    "Q8_1": Format(9, 32, 40),
    "Q2_K": Format(10, 256, 84),
    "Q3_K": Format(11, 256, 110),
    "Q8_K": Format(15, 256, 292),
    "IQ2_XXS": Format(16, 256, 66),
    "IQ2_XS": Format(17, 256, 74),
    "IQ3_XXS": Format(18, 256, 98),
    "IQ1_S": Format(19, 256, 50),
    "IQ4_NL": Format(20, 32, 18),
    "IQ3_S": Format(21, 256, 110),
    "IQ2_S": Format(22, 256, 82),
    "IQ4_XS": Format(23, 256, 136),
    "I8": Format(24, 1, 1),
    "I16": Format(25, 1, 2),
    "I32": Format(26, 1, 4),
    "I64": Format(27, 1, 8),
    "F64": Format(28, 1, 8),
    "IQ1_M": Format(29, 256, 56),
    "TQ1_0": Format(34, 256, 54),
    "TQ2_0": Format(35, 256, 66),
    "MXFP4": Format(39, 32, 17),
    "NVFP4": Format(40, 64, 36),
    "Q1_0": Format(41, 128, 18),
}

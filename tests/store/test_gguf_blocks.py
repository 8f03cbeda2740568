"""Blocks of GGUF files decoded at once equal the loops of ggml-quants.c, value by value."""

import struct

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.store import gguf_blocks
from jaxgen.store.gguf_blocks import FORMATS

F = np.float32


def half(raw, at):
    return F(struct.unpack_from("<e", raw, at)[0])


def signed(byte):
    return byte - 256 if byte > 127 else byte


def by_nibbles(raw, at, value):
    """A block of 32 whose low halves come before the high ones."""
    low = [value(raw[at + i] & 15, i) for i in range(16)]
    return low + [value(raw[at + i] >> 4, i + 16) for i in range(16)]


def q5(raw, at, value):
    bits = int.from_bytes(raw[at : at + 4], "little")
    return by_nibbles(raw, at + 4, lambda q, i: value(q | (bits >> i & 1) << 4))


def six_bits(raw, i):
    """get_scale_min_k4 of ggml-quants.c."""
    s = raw[4:16]
    if i < 4:
        return s[i] & 63, s[i + 4] & 63
    return s[i + 4] & 15 | s[i - 4] >> 6 << 4, s[i + 4] >> 4 | s[i] >> 6 << 4


def k_block(raw, value):
    """256 values in eight parts of 32, each with a scale and a minimum."""
    found = []
    for part in range(8):
        scale, minimum = (F(x) for x in six_bits(raw, part))
        d, m = half(raw, 0) * scale, half(raw, 2) * minimum
        found += [d * F(value(part, i)) - m for i in range(32)]
    return found


def q4_k(raw):
    return k_block(raw, lambda part, i: raw[16 + part // 2 * 32 + i] >> part % 2 * 4 & 15)


def q5_k(raw):
    def value(part, i):
        low = raw[48 + part // 2 * 32 + i] >> part % 2 * 4 & 15
        return low | (raw[16 + i] >> part & 1) << 4

    return k_block(raw, value)


def q6_k(raw):
    found = []
    for i in range(256):
        part, place = divmod(i, 128)
        quarter, column = divmod(place, 32)
        low = raw[part * 64 + quarter % 2 * 32 + column] >> quarter // 2 * 4 & 15
        high = raw[128 + part * 32 + column] >> quarter * 2 & 3
        scale = half(raw, 208) * F(signed(raw[192 + i // 16]))
        found.append(scale * F((low | high << 4) - 32))
    return found


SLOW = {
    "F32": lambda raw: [F(struct.unpack("<f", raw)[0])],
    "F16": lambda raw: [half(raw, 0)],
    "BF16": lambda raw: [F(struct.unpack("<f", b"\0\0" + raw)[0])],
    "Q4_0": lambda raw: by_nibbles(raw, 2, lambda q, i: half(raw, 0) * F(q - 8)),
    "Q4_1": lambda raw: by_nibbles(raw, 4, lambda q, i: half(raw, 0) * F(q) + half(raw, 2)),
    "Q5_0": lambda raw: q5(raw, 2, lambda q: half(raw, 0) * F(q - 16)),
    "Q5_1": lambda raw: q5(raw, 4, lambda q: half(raw, 0) * F(q) + half(raw, 2)),
    "Q8_0": lambda raw: [half(raw, 0) * F(signed(q)) for q in raw[2:]],
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}


def blocks(name, count, seed):
    """Random blocks, whose scales are numbers."""
    form = FORMATS[name]
    raw = np.random.default_rng(seed).integers(0, 256, (count, form.bytes), np.uint8)
    for start in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0, 2)):
        if start + 1 < form.bytes:
            raw[:, start + 1] &= 0x3F
    return raw


def test_every_format_that_is_read_has_a_slow_twin():
    assert SLOW.keys() == {name for name, form in FORMATS.items() if form.decode}


@pytest.mark.parametrize("name", SLOW)
def test_blocks_decoded_at_once_equal_a_loop_over_each(name, monkeypatch):
    monkeypatch.setattr(gguf_blocks, "CHUNK", 512)  # more than one chunk
    raw = blocks(name, 6, 0)
    wanted = np.asarray([SLOW[name](bytes(row)) for row in raw], np.float32)
    decoded = gguf_blocks.dequantize(raw.reshape(2, -1), name)
    assert decoded.shape == (2, wanted.size // 2)
    np.testing.assert_array_equal(decoded.view(np.uint32), wanted.reshape(2, -1).view(np.uint32))


@pytest.mark.parametrize("name", SLOW)
def test_blocks_equal_those_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    assert (kind.value, gguf.GGML_QUANT_SIZES[kind]) == (FORMATS[name].id, FORMATS[name][1:3])
    raw = np.random.default_rng(1).integers(0, 256, (8, FORMATS[name].bytes * 4), np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(raw, kind)
    np.testing.assert_array_equal(gguf_blocks.dequantize(raw, name), wanted)


def weights():
    values = np.random.default_rng(2).standard_normal((6, 64)).astype(np.float32)
    values[0], values[1], values[2] = 0, np.arange(64) / 4, values[2] * 1e-9
    return values


@pytest.mark.parametrize(("name", "part"), [("Q8_0", 127 * 2), ("Q4_0", 8)])
def test_quantised_values_are_off_by_at_most_half_a_step_of_q8_0_and_one_of_q4_0(name, part):
    values = weights()
    read = gguf_blocks.dequantize(gguf_blocks.quantize(values, name), name)
    largest = np.abs(values.reshape(6, 2, 32)).max(2, keepdims=True)
    assert (np.abs(read - values).reshape(6, 2, 32) <= largest / part * 1.01 + 1e-7).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_quantised_blocks_equal_those_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf")
    for scale in (1, 1e4, 1e-5):
        values = weights() * np.float32(scale)
        wanted = gguf.quantize(values, gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(gguf_blocks.quantize(values, name), wanted)


def test_a_format_that_is_not_read_is_named_with_those_that_are():
    with pytest.raises(CheckpointError, match=r"IQ4_XS is not read; known are F32, .*Q6_K: take"):
        gguf_blocks.dequantize(np.zeros((1, 136), np.uint8), "IQ4_XS")

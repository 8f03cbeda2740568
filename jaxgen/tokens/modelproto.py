"""The few fields of a sentencepiece model that its library does not tell, read off the wire.

Field numbers: sentencepiece_model.proto of google/sentencepiece, unchanged since 2018.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PIECES, TRAINER, NORMALIZER = 1, 2, 3
NAME, SCORE, KIND = 1, 2, 3  # SentencePiece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # its Type
# TrainerSpec: model_type, treat_whitespace_as_suffix, byte_fallback, and what is unknown
MODEL_TYPE, SUFFIX, BYTE_FALLBACK, UNK = 3, 24, 35, 40
UNIGRAM, BPE = 1, 2  # its ModelType
CHARSMAP, DUMMY_PREFIX, EXTRA_SPACES, ESCAPE, RULE_FILE = 2, 3, 4, 5, 6  # NormalizerSpec
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Normalizer:
    """What a model does to text before it looks for pieces."""

    dummy_prefix: bool
    suffix: bool
    keeps_all: bool


def read_normalizer(model: bytes) -> Normalizer:
    """Return how the model normalises; ValueError if the bytes are no whole model."""
    top = dict(_fields(model))
    sections = top.get(NORMALIZER), top.get(TRAINER)
    if not (isinstance(sections[0], bytes) and isinstance(sections[1], bytes)):
        raise ValueError("it has no trainer or normaliser section")
    normalizer, trainer = dict(_fields(sections[0])), dict(_fields(sections[1]))
    dummy, extra, escape = (
        bool(normalizer.get(number, True)) for number in (DUMMY_PREFIX, EXTRA_SPACES, ESCAPE)
    )
    keeps = not normalizer.get(CHARSMAP) and not dummy and not extra and escape
    return Normalizer(dummy, bool(trainer.get(SUFFIX, False)), keeps)


class Piece(NamedTuple):
    """A piece of a model: its text with U+2581 for spaces, its score, and its kind."""

    name: str
    score: float
    kind: int


@dataclass(frozen=True)
class Proto:
    """What a sentencepiece model file says, as far as another library needs it."""

    pieces: tuple[Piece, ...]
    model_type: int
    unk: int
    byte_fallback: bool
    suffix: bool
    charsmap: bytes
    dummy_prefix: bool
    extra_spaces: bool
    escape: bool


def read_proto(model: bytes) -> Proto:
    """Return the pieces and settings of a model; ValueError if the bytes are no whole model."""
    pieces, sections = [], {}
    for number, value in _fields(model):
        if number == PIECES and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif isinstance(value, bytes):
            sections[number] = dict(_fields(value))
    if not pieces or TRAINER not in sections or NORMALIZER not in sections:
        raise ValueError("it has no pieces, trainer or normaliser section")
    trainer, normalizer = sections[TRAINER], sections[NORMALIZER]
    return Proto(
        tuple(pieces),
        int(trainer.get(MODEL_TYPE, UNIGRAM)),
        _signed(int(trainer.get(UNK, 0))),
        bool(trainer.get(BYTE_FALLBACK, False)),
        bool(trainer.get(SUFFIX, False)),
        bytes(normalizer.get(CHARSMAP, b"")),
        bool(normalizer.get(DUMMY_PREFIX, True)),
        bool(normalizer.get(EXTRA_SPACES, True)),
        bool(normalizer.get(ESCAPE, True)),
    )


def _piece(raw: bytes) -> Piece:
    about = dict(_fields(raw))
    name, score = about.get(NAME, b""), about.get(SCORE, b"\0\0\0\0")
    if not (isinstance(name, bytes) and isinstance(score, bytes)):
        raise ValueError("a piece is malformed")
    return Piece(name.decode(), struct.unpack("<f", score)[0], int(about.get(KIND, NORMAL)))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def without_rule_file(model: bytes) -> bytes:
    """Return the model without the path of the file that its normaliser was made from."""
    return _without(model, NORMALIZER, RULE_FILE)


def with_short_scores(model: bytes) -> bytes:
    """Return a unigram model whose scores are multiples of 1/256.

    Their sums over a line are then exact in every precision, so that all libraries see the same
    ties, as between the orders of two runs of spaces.
    """
    shortened = bytearray()
    for number, value, raw_field in _spans(model):
        if number != PIECES or not isinstance(value, bytes):
            shortened += raw_field
            continue
        inner = b""
        for field, content, raw in _spans(value):
            if field == SCORE and isinstance(content, bytes):
                score = round(struct.unpack("<f", content)[0] * 256) / 256
                raw = raw[: -len(content)] + struct.pack("<f", score)
            inner += raw
        shortened += _number(number << 3 | BYTES) + _number(len(inner)) + inner
    return bytes(shortened)


def _without(raw: bytes, first: int, *inside: int) -> bytes:
    rest = b""
    for number, value, raw_field in _spans(raw):
        if number != first:
            rest += raw_field
        elif inside and isinstance(value, bytes):
            inner = _without(value, *inside)
            rest += _number(number << 3 | BYTES) + _number(len(inner)) + inner
    return rest


def _number(value: int) -> bytes:
    digits = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    return ((number, value) for number, value, _ in _spans(raw))


def _spans(raw: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Yield (number, value, all bytes) of each field."""
    offset = 0
    while (start := offset) < len(raw):
        key, offset = _varint(raw, offset)
        wire = key & 7
        value: int | bytes
        if wire == VARINT:
            value, offset = _varint(raw, offset)
        elif wire in (FIXED64, FIXED32, BYTES):
            size = {FIXED64: 8, FIXED32: 4}.get(wire)
            if size is None:
                size, offset = _varint(raw, offset)
            value, offset = raw[offset : offset + size], offset + size
        else:
            raise ValueError("it is not a protocol buffer")
        if offset > len(raw):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, value, raw[start:offset]


def _varint(raw: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(raw):
            raise ValueError("it ends in the middle of a number")
        byte = raw[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise ValueError("it is not a protocol buffer")

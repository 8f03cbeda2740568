"""The few fields of a sentencepiece model that its library does not tell, read off the wire.

Field numbers: sentencepiece_model.proto of google/sentencepiece, unchanged since 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRAINER, NORMALIZER = 2, 3
SUFFIX = 24  # TrainerSpec.treat_whitespace_as_suffix
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


def without_rule_file(model: bytes) -> bytes:
    """Return the model without the path of the file that its normaliser was made from."""
    return _without(model, NORMALIZER, RULE_FILE)


def _without(raw: bytes, first: int, *inside: int) -> bytes:
    kept = b""
    for number, value, whole in _spans(raw):
        if number != first:
            kept += whole
        elif inside and isinstance(value, bytes):
            inner = _without(value, *inside)
            kept += _number(number << 3 | BYTES) + _number(len(inner)) + inner
    return kept


def _number(value: int) -> bytes:
    digits = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    return ((number, value) for number, value, _ in _spans(raw))


def _spans(raw: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Yield (number, value, all bytes) of each field."""
    place = 0
    while (start := place) < len(raw):
        key, place = _varint(raw, place)
        wire = key & 7
        value: int | bytes
        if wire == VARINT:
            value, place = _varint(raw, place)
        elif wire in (FIXED64, FIXED32, BYTES):
            size = {FIXED64: 8, FIXED32: 4}.get(wire)
            if size is None:
                size, place = _varint(raw, place)
            value, place = raw[place : place + size], place + size
        else:
            raise ValueError("it is not a protocol buffer")
        if place > len(raw):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, value, raw[start:place]


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(raw):
            raise ValueError("it ends in the middle of a number")
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it is not a protocol buffer")

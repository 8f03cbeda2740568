"""The few fields of a sentencepiece model that its library does not tell, read off the wire.

Field numbers: sentencepiece_model.proto of google/sentencepiece, unchanged since 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRAINER, NORMALIZER = 2, 3
SUFFIX = 24  # TrainerSpec.treat_whitespace_as_suffix
CHARSMAP, DUMMY_PREFIX, EXTRA_SPACES, ESCAPE = 2, 3, 4, 5  # NormalizerSpec
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


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(raw):
        key, place = _varint(raw, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(raw, place)
            yield number, value
        elif wire in (FIXED64, FIXED32):
            place += 8 if wire == FIXED64 else 4
        elif wire == BYTES:
            size, place = _varint(raw, place)
            if place + size > len(raw):
                raise ValueError("it ends in the middle of a field")
            yield number, raw[place : place + size]
            place += size
        else:
            raise ValueError("it is not a protocol buffer")
    if place > len(raw):
        raise ValueError("it ends in the middle of a field")


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

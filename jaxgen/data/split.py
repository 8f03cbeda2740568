"""Which text is for training, for validation, and for nothing but the last test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from jaxgen.data.reading import Document, documents
from jaxgen.data.settings import DataSettings
from jaxgen.data.streams import Tally

SPLITS = ("train", "valid", "test")


def assigned(settings: DataSettings, tally: Tally | None = None) -> Iterator[tuple[str, Document]]:
    """Yield (split, document) in the order of the corpus; errors are those of `documents`.

    hash: a document's sha256 decides, so that equal texts are never on both sides and new
    documents move none of the old. tail: all text in a row is cut at two characters, train first,
    then valid, then test; a document that lies across a cut becomes two.
    """
    if settings.split == "hash":
        for document in documents(settings, tally):
            yield _by_hash(document.text, settings), document
        return
    yield from _tail(settings, tally)


def training_texts(settings: DataSettings) -> Iterator[str]:
    """Yield the texts of the training split, for a tokenizer to learn from."""
    for split, document in assigned(settings):
        if split == "train":
            yield document.text


def _by_hash(text: str, settings: DataSettings) -> str:
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < settings.test_fraction:
        return "test"
    return "valid" if place < settings.test_fraction + settings.valid_fraction else "train"


def _tail(settings: DataSettings, tally: Tally | None) -> Iterator[tuple[str, Document]]:
    total = sum(len(document.text) for document in documents(settings))
    ends = {
        "train": int(total * (1 - settings.valid_fraction - settings.test_fraction)),
        "valid": int(total * (1 - settings.test_fraction)),
        "test": total,
    }
    place = 0
    for document in documents(settings, tally):
        begin = place
        for split, end in ends.items():
            part = document.text[max(begin, place) - begin : max(end - begin, 0)]
            if place < end and part:
                yield split, Document(part, document.source)
                place += len(part)

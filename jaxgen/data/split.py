"""Which text is for training, for validation, and for nothing but the last test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from jaxgen.data.canaries import canary_documents
from jaxgen.data.document import Document
from jaxgen.data.messages import words_of
from jaxgen.data.reading import documents
from jaxgen.data.settings import FEW, WHOLE, DataSettings, Form
from jaxgen.data.sources import Sources
from jaxgen.data.streams import Tally

SPLITS = ("train", "valid", "test")


def assigned(
    settings: DataSettings,
    tally: Tally | None = None,
    *,
    form: Form = "text",
    only: Sources | None = None,
) -> Iterator[tuple[str, Document]]:
    """Yield (split, document) in the order of the corpus; errors are those of `documents`.

    hash: a document's sha256 decides, so that equal texts are never on both sides and new
    documents move none of the old. tail: all text in a row is cut at two characters, train first,
    then valid, then test; a document that lies across a cut becomes two, but for one with a
    target: of those the documents are counted. valid_files and test_files follow as they are, and
    canaries as training text. only: the files of each split that are read, of split=hash.
    """
    if only is not None or split_kind(settings, form) == "hash":
        mine = None if only is None else only.train
        for document in documents(settings, tally, form=form, only=mine):
            yield _by_hash(document.text, settings), document
    else:
        yield from (_tail if form == "text" else _tail_whole)(settings, tally, form)
    for split, files in (("valid", settings.valid_files), ("test", settings.test_files)):
        mine = None if only is None else getattr(only, split)
        if files:
            for document in documents(settings, tally, form=form, files=files, only=mine):
                yield split, document
    for document in canary_documents(settings.canaries):
        yield "train", document


def split_kind(settings: DataSettings, form: Form) -> Literal["hash", "tail"]:
    """Return how the text is split: what data.split says, or what its auto means for it."""
    if settings.split != "auto":
        return settings.split
    lacking = {"train", "valid"} if settings.fractions[0] else {"train"}
    for number, document in enumerate(documents(settings, form=form), 1):
        lacking.discard(_by_hash(document.text, settings))
        if number >= FEW and not lacking:
            return "hash"
    return "tail"


def training_texts(settings: DataSettings, *, form: Form = "text") -> Iterator[str]:
    """Yield the texts of the training split, for a tokenizer to learn from.

    Of pairs both sides; of a chat, and other records read whole, what is said in them.
    """
    for split, document in assigned(settings, form=form):
        if split == "train":
            yield from words_of(document.text) if form in WHOLE else (
                document.texts if form == "pairs" else (document.text,))  # fmt: skip


def _by_hash(text: str, settings: DataSettings) -> str:
    valid, test = settings.fractions
    fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if fraction < test:
        return "test"
    return "valid" if fraction < test + valid else "train"


def _tail(
    settings: DataSettings, tally: Tally | None, form: Form
) -> Iterator[tuple[str, Document]]:
    total = sum(len(document.text) for document in documents(settings))
    ends = _ends(settings, total)
    offset = 0
    for document in documents(settings, tally):
        begin = offset
        for split, end in ends.items():
            part = document.text[max(begin, offset) - begin : max(end - begin, 0)]
            if offset < end and part:
                yield split, replace(document, text=part)
                offset += len(part)


def _tail_whole(
    settings: DataSettings, tally: Tally | None, form: Form
) -> Iterator[tuple[str, Document]]:
    ends = _ends(settings, sum(1 for _ in documents(settings, form=form)))
    for number, document in enumerate(documents(settings, tally, form=form)):
        yield next(split for split, end in ends.items() if number < end), document


def _ends(settings: DataSettings, total: int) -> dict[str, int]:
    valid, test = settings.fractions
    train, held = int(total * (1 - valid - test)), int(total * (1 - test))
    if valid and train == held and total > 1:  # a fraction of few leaves one all the same
        train, held = (train - 1, held) if train > 1 else (train, held + 1)
    return {"train": train, "valid": held, "test": total}

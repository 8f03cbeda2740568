"""Documents as the texts of an index: their names, their bytes, and a table of passages."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal

import numpy as np

from jaxgen.data.corpus import listed
from jaxgen.data.document import Document
from jaxgen.data.reading import documents
from jaxgen.data.settings import FIELD, DataSettings
from jaxgen.data.sources import RECORDS, kind_of, text_below
from jaxgen.data.streams import Tally
from jaxgen.errors import ConfigError, DataError
from jaxgen.knowledge import passages


def read_documents(
    sources: Sequence[str | os.PathLike],
    size: int,
    overlap: int,
    field: str,
    on_bad_record: Literal["stop", "skip"],
) -> tuple[list[bytes], list[bytes], np.ndarray]:
    """Return (names and texts of the documents, table of their passages).

    A row of the table is the number of its document, (start, end) in it counted in characters, and
    (start, end, start, end) of its text and its heading in the bytes of all texts.
    """
    words = [os.fspath(source) for source in sources]
    if not words:
        raise ConfigError("no documents; name files or folders of text")
    left_out: list[Path] = []
    for word in words:
        if Path(word).is_dir():
            texts_there, others = text_below(Path(word))
            left_out += others
            if not texts_there:
                raise DataError(
                    f"{word} holds no text; name a folder with .txt, .md or .jsonl files"
                )
        if not Path(word).exists() and not any(c in word for c in "*?["):
            raise DataError(f"{word} does not exist; correct the path of the documents")
    _check_field(field, words)
    settings = DataSettings(files=tuple(words), field=field, on_bad_record=on_bad_record)
    tally = Tally()
    names, texts, table, begin = list[bytes](), list[bytes](), list[list[int]](), 0
    for name, text in _named(documents(settings, tally, files=words)):
        raw = text.encode()
        # Where all characters are of one byte, which is usual, nothing has to be counted.
        place = (lambda at: at) if len(raw) == len(text) else _byte_places(text)
        for start, end, heading in passages.split(text, size, overlap):
            spans = (start, end, *heading)
            table.append([len(names), start, end, *(begin + int(place(at)) for at in spans)])
        names.append(name.encode())
        texts.append(raw)
        begin += len(raw)
    if left_out:
        warnings.warn(f"left out as empty or no text: {listed(left_out)}", stacklevel=3)
        if any(path.suffix.lower() == ".pdf" for path in left_out):
            warnings.warn("PDF is not read: make text of it first (pdftotext)", stacklevel=3)
    if tally.skipped:
        said = ", ".join(f"{count} ({what})" for what, count in tally.skipped.items())
        warnings.warn(f"left out: {said}", stacklevel=3)
    if not table:
        raise DataError(f"{words[0]} holds no text that can be searched; give other documents")
    return names, texts, np.asarray(table, np.int64)


def _check_field(field: str, words: Sequence[str]) -> None:
    """Raise ConfigError for a field where no document has any."""
    globs = (Path(path) for word in words for path in (glob(word, recursive=True) or [word]))
    found = (one for path in globs for one in (text_below(path)[0] if path.is_dir() else [path]))
    if field != FIELD and not any(kind_of(path) in RECORDS for path in found):
        raise ConfigError(
            f"field={field} has no effect: no document is a .jsonl or .parquet file; drop it"
        )


def _named(read: Iterator[Document]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of documents: those of a file of records are numbered from 1."""
    source, number = "", 0
    for document in read:
        number = number + 1 if document.source == source else 1
        source = document.source
        several = kind_of(Path(source)) in RECORDS
        yield f"{source}#{number}" if several else source, document.text


def _byte_places(text: str) -> Callable[[int], int]:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    places = np.concatenate([[0], np.cumsum(widths)])
    return places.__getitem__


def passage(blob: np.ndarray, row: np.ndarray) -> tuple[str, str]:
    """Return (text, heading) of a row of the table, of the bytes of all texts."""
    text, heading = (blob[a:b].tobytes().decode() for a, b in (row[3:5], row[5:7]))
    return text, heading


def under_heading(text: str, heading: str) -> str:
    """Return a passage as it is indexed: under its heading."""
    return f"{heading}\n{text}" if heading else text


@dataclass(frozen=True)
class Passages:
    """The passages of a table as they are indexed, each decoded when it is asked for."""

    blob: np.ndarray
    table: np.ndarray

    def __getitem__(self, number: int) -> str:
        return under_heading(*passage(self.blob, self.table[number]))

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self.table)))

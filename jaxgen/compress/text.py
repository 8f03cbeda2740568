"""Rows of token ids from a text: for calibration, and to measure a model on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxgen.data import assigned, reading
from jaxgen.data.corpora import CORPORA
from jaxgen.data.settings import DataSettings
from jaxgen.errors import ConfigError, DataError
from jaxgen.pretrained.assets import source_note
from jaxgen.run.folder import CHECKPOINTS, existing_settings
from jaxgen.settings import build
from jaxgen.text.loaded_model import LoadedModel

WIDER = 8  # times the wanted tokens that are read, of which rows are taken evenly


def token_rows(
    model: LoadedModel, texts: Iterable[str], rows: int, length: int, name: str
) -> np.ndarray:
    """Return rows of a text [rows or fewer, length], taken evenly from its beginning on.

    name: of the text, for messages. Raises DataError for a text shorter than one row.
    """
    ids: list[int] = []
    for text in texts:
        if text:
            ids += model.ids(text)
        if len(ids) >= WIDER * rows * length:
            break
    count = len(ids) // length
    if not count:
        raise DataError(
            f"{name} has {len(ids)} tokens, fewer than a row of length={length}; give more text, "
            f"or length={max(len(ids), 1)}"
        )
    all_rows = np.asarray(ids[: count * length], np.int32).reshape(count, length)
    return all_rows[np.linspace(0, count - 1, min(rows, count)).astype(int)]


def texts_of(folder: Path, words: Sequence[str], split: str) -> tuple[str, Iterator[str]]:
    """Return (name, texts) of what is given, or of a split of the text that a run was trained on.

    words: files, folders or globs, or the name of a corpus. Raises ConfigError for a model that is
    no run where none are given.
    """
    if len(words) == 1 and words[0] in CORPORA["text"]:
        settings = build(DataSettings, {"corpus": words[0]})
    elif words:
        settings = DataSettings(files=tuple(words))
    elif (folder / CHECKPOINTS).is_dir():
        assigned_texts = assigned(existing_settings(folder).data)
        texts = (text for part, row in assigned_texts if part == split for text in row.texts)
        return f"the {split} text of {folder}", texts
    else:
        option = "--data" if split == "train" else "--on"
        raise ConfigError(
            f"{option} is missing: {folder}{source_note(folder)} is no run with a text of "
            f"its own; give one"
        )
    return " ".join(words), _texts(settings)


def _texts(settings: DataSettings) -> Iterator[str]:
    """Yield texts; errors of files don't name keys of a config, which there is none of here."""
    try:
        for document in reading.documents(settings):
            yield from document.texts
    except DataError as error:
        raise DataError(f"{str(error).partition(';')[0]}; name files with text in them") from error

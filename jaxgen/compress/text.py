"""Rows of token ids from a text: for calibration, and to measure a model on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxgen.errors import DataError
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
    whole = np.asarray(ids[: count * length], np.int32).reshape(count, length)
    return whole[np.linspace(0, count - 1, min(rows, count)).astype(int)]

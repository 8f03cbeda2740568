"""Checks of training data of the classic models: concatenated documents, or padded rows of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.core import Tracer

from jaxgen.errors import DataError


def check_documents(
    tokens: np.ndarray, offsets: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [N], offsets [documents + 1]) as int64.

    Raises DataError for no tokens, ids that are no whole numbers below `vocab_size`, or offsets
    that don't rise from 0 to N.
    """
    tokens, offsets = np.asarray(tokens), np.asarray(offsets)
    if not tokens.size:
        raise DataError("there are no tokens to learn from; give some text")
    for name, array in (("tokens", tokens), ("offsets", offsets)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                f"{name} have shape {array.shape} and dtype {array.dtype}; give one dimension of "
                f"whole numbers"
            )
    _check_ids(tokens, vocab_size)
    offsets = offsets.astype(np.int64)
    if len(offsets) < 2 or offsets[0] or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise DataError(
            f"offsets {offsets[:3].tolist()} .. {offsets[-1:].tolist()} must rise from 0 to the "
            f"{len(tokens)} tokens"
        )
    return tokens.astype(np.int64), offsets


def is_traced(value: Any) -> bool:
    """Return whether a value is a tracer, as inside jit."""
    return isinstance(value, Tracer)


def check_rows(tokens: Any, lengths: Any, vocab_size: int) -> None:
    """Raise DataError unless tokens [B, T] are ids and lengths [B] lie in 1 .. T.

    Only the first `lengths` ids of a row count. Of tracers only the shape is checked.
    """
    shape, sizes = np.shape(tokens), np.shape(lengths)
    if len(shape) != 2 or sizes != shape[:1] or not shape[1]:
        raise DataError(
            f"tokens of shape {shape} with lengths of shape {sizes}; give tokens [B, T] of at "
            f"least one id, and a length for each row"
        )
    if is_traced(tokens) or is_traced(lengths):
        return
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    wrong = np.flatnonzero((lengths < 1) | (lengths > shape[1]))
    if len(wrong):
        raise DataError(
            f"lengths[{wrong[0]}]={lengths[wrong[0]]} must be 1 to {shape[1]}, the width of tokens"
        )
    _check_ids(tokens[np.arange(shape[1]) < lengths[:, None]], vocab_size)


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise DataError(f"token id {wrong} is outside the vocabulary of {vocab_size}")

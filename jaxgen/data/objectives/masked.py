"""BERT's objective (Devlin et al. 2019): some tokens are hidden, and guessed from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from jaxgen import arguments
from jaxgen.data.random import uniform

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are
Unit = Literal["tokens", "words"]


@arguments.checked
@dataclass(frozen=True)
class Masking:
    """What to hide. mask: the id that hides; size: ids that a random token is drawn from."""

    rate: float
    unit: Unit
    mask: int
    size: int


def hide(
    tokens: Int[np.ndarray, "B T"],
    open_: Bool[np.ndarray, "B T"],
    starts: Bool[np.ndarray, "B T"],
    keys: UInt64[np.ndarray, "B"],
    masking: Masking,
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """Return (what the model reads, weights): 1 where the token has to be guessed.

    open_: tokens that may be hidden (no special ids, no padding). starts: tokens that begin a
    word. Of each row, round(rate * open tokens) are chosen, and at least one; with unit=words whole
    words are, until there are as many. Of the chosen, 80 % become `mask`, 10 % a random id, 10 %
    stay. Whole words share one fate.
    """
    wholes = _wholes(open_, starts, masking.unit)
    chosen = _chosen(open_, wholes, keys, masking.rate)
    fate = np.take_along_axis(uniform(keys, tokens.shape[1], stream=2), wholes, axis=1)
    random_ids = (uniform(keys, tokens.shape[1], stream=3) * masking.size).astype(np.int64)
    read = np.where(
        fate < MASKED, masking.mask, np.where(fate < MASKED + RANDOM, random_ids, tokens)
    )
    return np.where(chosen, read, tokens).astype(np.int32), chosen.astype(np.float32)


def _wholes(open_: np.ndarray, starts: np.ndarray, unit: Unit) -> np.ndarray:
    """Return, for each token, the number of the whole that it is part of."""
    if unit == "tokens":
        return np.broadcast_to(np.arange(open_.shape[1]), open_.shape)
    # What can't be hidden ends a word, too.
    begins = starts | ~open_
    begins[:, 1:] |= ~open_[:, :-1]
    return np.maximum(np.cumsum(begins, axis=1) - 1, 0)


def _chosen(open_: np.ndarray, wholes: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    width = open_.shape[1]
    lot = np.take_along_axis(uniform(keys, width, stream=1), wholes, axis=1)
    lot = np.where(open_, lot, 2.0)  # never
    order = np.lexsort((np.broadcast_to(np.arange(width), lot.shape), lot), axis=1)
    count = np.maximum(np.round(rate * open_.sum(axis=1)), 1)[:, None]
    ranked = np.take_along_axis(wholes, order, axis=1)
    # A whole is taken if fewer than wanted came before it: then all of its tokens are.
    first = np.ones_like(ranked, bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    began = np.maximum.accumulate(np.where(first, np.arange(width), 0), axis=1)
    chosen = np.zeros_like(open_)
    np.put_along_axis(chosen, order, began < count, axis=1)
    return chosen & open_

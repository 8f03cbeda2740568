"""Requests as the arrays of one batch: padded, bucketed, with keys and the end of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.text.generation import Generation
from jaxgen.text.shaping import stops_of
from jaxgen.tokens import Tokenizer

SMALLEST = 32  # prompt widths, lengths and caches; all double, so few shapes are ever compiled


class Request(NamedTuple):
    """A request, ready to decode.

    ids: its prompt, or what its encoder reads; limit: new tokens at most; number: its place among
    the draws of its seed; other: the negative prompt's ids, if any.
    """

    ids: list[int]
    limit: int
    settings: Generation
    number: int = 0
    other: tuple[int, ...] = ()


class Rows(NamedTuple):
    """The arrays of a batch: those of its requests, and of rows that only fill it up.

    prompt: [B, W] of widths [B] real; stops: [B, E]; limits: [B], 0 for a filling row; keys: [B];
    source: [B, S] and its segments, of an encoder-decoder; other: as prompt, and pending [B], what
    guidance steers away from; scale: [B] of guidance.
    """

    prompt: np.ndarray
    widths: np.ndarray
    stops: np.ndarray
    limits: np.ndarray
    keys: Any
    source: np.ndarray | None = None
    segments: np.ndarray | None = None
    other: np.ndarray | None = None
    other_widths: np.ndarray | None = None
    scale: np.ndarray | None = None


def rows_of(
    requests: Sequence[Request],
    config: ModelConfig,
    tokenizer: Tokenizer,
    start: int | None,
    ends: Sequence[int] = (),
) -> Rows:
    """Return the rows of a batch.

    start: what an encoder-decoder's texts begin with; ends: ids that end every text.
    """
    size = batch_size(len(requests))
    filled = [*requests, *[requests[0]] * (size - len(requests))]
    limits = np.asarray([one.limit for one in filled], np.int32)
    limits[len(requests) :] = 0
    stops = stops_of([one.settings for one in filled], tokenizer, ends)
    tokens, widths = padded([one.ids for one in filled])
    rows = Rows(tokens, widths, stops, limits, _keys(filled))
    if config.topology == "encoder_decoder":
        tokens = tokens[:, : config.context]  # a bucket may be wider than an encoder reads
        segments = (np.arange(tokens.shape[1]) < widths[:, None]).astype(np.int32)
        begin = np.full((size, 1), start, np.int32)
        rows = rows._replace(
            prompt=begin, widths=np.ones(size, np.int32), source=tokens, segments=segments
        )
    if requests[0].settings.guidance is not None:
        other, other_widths = padded([list(one.other) or [0] for one in filled])
        other = other[:, : config.context]
        scale = np.asarray([one.settings.guidance for one in filled], np.float32)
        # A width of 0 stands for no other prompt.
        other_widths = np.where([bool(one.other) for one in filled], other_widths, 0)
        rows = rows._replace(other=other, other_widths=other_widths.astype(np.int32), scale=scale)
    return rows


def bucket(size: int) -> int:
    """Return the smallest of 32, 64, 128, ... that holds `size`."""
    return max(SMALLEST, 1 << (size - 1).bit_length())


def batch_size(rows: int) -> int:
    """Return the smallest of 1, 2, 4, 6, 8, 12, 16, ... that holds `rows`."""
    power = 1 << (rows - 1).bit_length()
    middle = power // 4 * 3
    return middle if middle >= rows and middle > 3 else power


def padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [B, W], widths [B]) of rows of ids, padded on the right to a bucket."""
    widths = np.asarray([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), bucket(int(widths.max()))), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, widths


def _keys(requests: Sequence[Request]) -> Any:
    """A key for each request: its seed's (see `ops.keys`), folded with its number."""
    seeds = [one.settings.seed for one in requests]
    halves = np.asarray([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32)
    return _folded(halves, np.asarray([one.number for one in requests], np.uint32))


@jax.jit
def _folded(halves, numbers):
    keys = jax.random.wrap_key_data(halves, impl="threefry2x32")
    return jax.vmap(jax.random.fold_in)(keys, numbers)

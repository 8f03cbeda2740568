"""Rows of ids as the arrays of one batch: the only buckets and the only padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.errors import ConfigError
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.processors import stops_of
from jaxgen.text.request import Generation

SMALLEST = 32  # prompt widths, lengths and caches; all double, so few shapes are ever compiled
SHORTEST = 16  # the same of texts that are only read

Progress = Callable[[int, int], None]  # called with (texts done, texts in all)


class Request(NamedTuple):
    """A request, ready to decode.

    ids: its prompt, or what its encoder reads; limit: new tokens at most; number: its place among
    the draws of its seed; other: the negative prompt's ids, if any; after: ids whose text its own
    goes on from; dropped: ids of its prompt that were cut off; user: whose adapter it has; media:
    an image that its encoder reads instead of ids, or the images [M, ...] in its prompt.
    """

    ids: list[int]
    limit: int
    settings: Generation
    number: int = 0
    other: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    dropped: int = 0
    user: str | None = None
    media: np.ndarray | None = None


class Rows(NamedTuple):
    """The arrays of a batch, with filler rows.

    prompt: [B, W] of widths [B] real; stops: [B, E]; limits: [B], 0 for a filling row; keys: [B];
    source: [B, S] and its segments, of an encoder-decoder, or images without; other: the negative
    prompts of guidance; scale: [B] of guidance; prefix: [B] ids kept when a full context slides,
    None: no slide; media: images [B, M, ...] in the prompts of a decoder, None: no row has one.
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
    prefix: np.ndarray | None = None
    media: np.ndarray | None = None


def rows_of(requests: Sequence[Request], model: LoadedModel, size: int) -> Rows:
    """Return the rows of a batch of `size`, filled up with copies of the first request."""
    filled = fill_up(requests, size)
    limits = np.asarray([one.limit for one in filled], np.int32)
    limits[len(requests) :] = 0
    stops = stops_of([one.settings for one in filled], model.tokenizer, model.stop)
    tokens, widths = pad([one.ids for one in filled])
    context = model.config.longest
    tokens = tokens[:, :context]  # a bucket may be wider than what is read
    rows = Rows(tokens, widths, stops, limits, request_keys(filled))
    if requests[0].settings.overflow == "slide":
        prefix = [num_opening(one.ids, model) for one in filled]
        rows = rows._replace(prefix=np.asarray(prefix, np.int32))
    if model.config.vision is not None and requests[0].media is not None:
        rows = rows._replace(media=np.stack([_padded(one) for one in filled]))
    if model.config.topology == "encoder_decoder":
        begin = np.full((size, 1), model.start, np.int32)
        images = [one.media for one in filled if one.media is not None]
        source, segments = tokens, segments_of(tokens, widths)
        if images:
            source, segments = np.stack(images), None
        ones = np.ones(size, np.int32)
        rows = rows._replace(prompt=begin, widths=ones, source=source, segments=segments)
    if (steered := requests[0].settings.steered) is not None:
        other, other_widths = pad([list(one.other) or [0] for one in filled])
        scale = np.asarray([getattr(one.settings, steered) for one in filled], np.float32)
        # A width of 0 stands for no other prompt.
        other_widths = np.where([bool(one.other) for one in filled], other_widths, 0)
        rows = rows._replace(
            other=other[:, :context], other_widths=other_widths.astype(np.int32), scale=scale
        )
    return rows


def num_images(request: Request) -> int:
    """Return the bucket of the images in a prompt: what rows of one batch have."""
    return 0 if request.media is None else bucket(len(request.media), 1)


def _padded(request: Request) -> np.ndarray:
    """Return the images of a prompt with zeros behind them, up to their bucket."""
    media = request.media
    assert media is not None
    behind = ((0, num_images(request) - len(media)), *[(0, 0)] * (media.ndim - 1))
    return np.pad(media, behind)


def num_opening(ids: Sequence[int], model: LoadedModel) -> int:
    """Return the number of ids that open every text of the model (its bos) and survive a cut."""
    before, _ = model.around
    return len(before) if [*ids[: len(before)]] == before else 0


def last_half(context: int) -> int:
    """Return the number of tokens that a full context keeps when it slides."""
    return max(context // 2, 1)


def fill_up(requests: Sequence[Request], size: int) -> list[Request]:
    """Return the requests and copies of the first one, `size` in all."""
    return [*requests, *[requests[0]] * (size - len(requests))]


def bucket(size: int, smallest: int = SMALLEST) -> int:
    """Return the least of smallest, 2 * smallest, 4 * smallest, ... that holds `size`."""
    return max(smallest, 1 << (size - 1).bit_length())


def batch_size(rows: int) -> int:
    """Return the smallest of 1, 2, 4, 6, 8, 12, 16, ... that holds `rows`."""
    power = 1 << (rows - 1).bit_length()
    middle = power // 4 * 3
    return middle if middle >= rows and middle > 3 else power


def pad(
    rows: Sequence[Sequence[int]], *, width: int | None = None, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [size, width], widths [size]) of rows of ids, padded on the right with 0.

    width: None takes the bucket of the longest; size: None as many as there are rows.
    """
    size = len(rows) if size is None else size
    widths = np.zeros(size, np.int32)
    widths[: len(rows)] = [len(row) for row in rows]
    tokens = np.zeros((size, bucket(int(widths.max())) if width is None else width), np.int32)
    for row, ids in zip(tokens, rows, strict=False):
        row[: len(ids)] = ids
    return tokens, widths


def segments_of(tokens: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return [B, T] 1 where a row's token is real, 0 where it is padding."""
    return (np.arange(tokens.shape[1]) < widths[:, None]).astype(np.int32)


def split_by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Return the numbers of the rows in batches, rows of about one length together."""
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[begin : begin + batch] for begin in range(0, len(order), batch)]


def by_length(
    rows: Sequence[Sequence[int]], batch: int, most: int, progress: Progress | None = None
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield (numbers of the rows, tokens [batch, T], segments [batch, T]), long rows together.

    T is 16, 32, ... up to `most`; the last batch is filled up with rows of padding, so that each
    width is compiled once. Raises ConfigError for a batch below 1.
    """
    done = 0
    for numbers in split_by_length([len(row) for row in rows], batch):
        width = min(bucket(len(rows[numbers[-1]]), SHORTEST), most)
        tokens, widths = pad([rows[i] for i in numbers], width=width, size=batch)
        yield numbers, tokens, segments_of(tokens, np.maximum(widths, 1))  # no mean of nothing
        done += len(numbers)
        if progress:
            progress(done, len(rows))


def request_keys(requests: Sequence[Request]) -> Any:
    """Return a key for each request: its seed's (see `ops.keys`), folded with its number."""
    seeds = [one.settings.seed for one in requests]
    halves = np.asarray([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32)
    return _fold_in(halves, np.asarray([one.number for one in requests], np.uint32))


@jax.jit
def _fold_in(halves, numbers):
    keys = jax.random.wrap_key_data(halves, impl="threefry2x32")
    return jax.vmap(jax.random.fold_in)(keys, numbers)

"""Rows of a fixed length cut from the documents laid end to end, and what each position may see."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]
BLOCK = 1 << 16  # documents looked at together


def rows_per_epoch(shard: TokenShard, context: int) -> int:
    """Return how many rows of `context` targets hold every token once, the last one partly."""
    return -(-len(shard.tokens) // context)


def cut(
    shard: TokenShard, starts: Int[np.ndarray, "B"], ends: Int[np.ndarray, "B"], context: int
) -> Batch:
    """Return the batch of the rows that begin at `starts`; all of it is a pure function of them.

    Row b reads tokens starts[b] .. starts[b] + T - 1 and predicts the one after each. Beyond the
    last of the N tokens the text goes on at its beginning, as other documents. Where a target is at
    ends[b] or beyond it, or of another document than its token, its weight is 0.

    tokens, targets: [B, T] int32; weights: [B, T] float32, 0 or 1; segments: [B, T] int32, 1 for
    the row's first document, 2 for its next, 0 for padding; positions: [B, T] int32, from 0 at the
    row's beginning and at each document's; index: [B] int64, `starts`, -1 for rows of padding.
    """
    windows = starts[:, None] + np.arange(context + 1)
    tokens = shard.tokens[windows % len(shard.tokens)].astype(np.int32)
    begun = _begun(shard, starts, context + 1)
    inside = windows[:, 1:] < ends[:, None]  # a token without a target is padding as well
    within = ~begun[:, 1:] & inside
    fresh = begun[:, :-1]
    fresh[:, 0] = True
    places = np.broadcast_to(np.arange(context), fresh.shape)
    positions = places - np.maximum.accumulate(np.where(fresh, places, 0), axis=1)
    return {
        "tokens": np.where(inside, tokens[:, :-1], 0).astype(np.int32),
        "targets": np.where(within, tokens[:, 1:], 0).astype(np.int32),
        "weights": within.astype(np.float32),
        "segments": np.where(inside, fresh.cumsum(axis=1), 0).astype(np.int32),
        "positions": np.where(inside, positions, 0).astype(np.int32),
        "index": np.where(inside[:, 0], starts, -1).astype(np.int64),
    }


def _begun(shard: TokenShard, starts: Int[np.ndarray, "B"], width: int) -> Bool[np.ndarray, "B W"]:
    """Return at which of the tokens that follow each start a document begins."""
    count, documents = len(shard.tokens), shard.documents
    # Only the two ends of a row are searched for: there may be very many documents.
    ends = np.stack([starts, starts + width - 1])
    number = np.searchsorted(shard.offsets[:-1], (ends % count).astype(np.uint64), side="right") - 1
    first, last = number + ends // count * documents  # after the last document comes the first
    sizes = last - first
    row = np.repeat(np.arange(len(starts)), sizes)
    number = np.arange(1, sizes.sum() + 1) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)
    turn, number = np.divmod(number, documents)
    place = shard.offsets[number].astype(np.int64) + turn * count - starts[row]
    begun = np.zeros((len(starts), width), bool)
    begun[row, place] = True
    return begun


def check_room(shard: TokenShard, context: int, *, whole_row: bool) -> None:
    """Raise DataError where there is nothing to predict, or less than the one row wanted."""
    if context < 1:
        raise ConfigError(f"context={context} must be at least 1")
    count = len(shard.tokens)
    # Block by block: there may be more documents than the memory holds numbers.
    blocks = range(0, shard.documents, BLOCK)
    if not any((np.diff(shard.offsets[at : at + BLOCK + 1]) > 1).any() for at in blocks):
        raise DataError(
            f"{shard.path}: none of its {shard.documents} documents has 2 tokens, so there is "
            f"nothing to predict; give longer ones"
        )
    if whole_row and count <= context:
        raise DataError(
            f"{shard.path} holds {count} tokens, but one row of context={context} takes "
            f"{context + 1}; give more text, or set model.context below {count}"
        )


def share(batch: int, process: tuple[int, int]) -> slice:
    """Return the rows of a global batch that process (index, count) holds; ConfigError if none."""
    index, count = process
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1")
    if not 0 <= index < count:
        raise ConfigError(f"process={index} is not one of {count}")
    if batch % count:
        raise ConfigError(f"batch={batch} is not a multiple of the {count} processes")
    each = batch // count
    return slice(index * each, (index + 1) * each)


def documents_of(shard: TokenShard, start: int, context: int) -> str:
    """Return in words which documents the row that begins at token `start` holds, and their files.

    start: as in a batch's "index"; -1, of a row of padding, holds none.
    """
    if start < 0 or not len(shard.tokens):
        return "padding"
    places = np.asarray([start, start + context - 1]) % len(shard.tokens)
    first, last = np.searchsorted(shard.offsets, places.astype(np.uint64), side="right") - 1
    names = [_source(shard, number) for number in dict.fromkeys([int(first), int(last)])]
    from_ = ", ".join(dict.fromkeys(name for name in names if name))
    numbers = f"document {first}" if first == last else f"documents {first}-{last}"
    return f"{numbers} of {shard.path.stem}{f', from {from_}' if from_ else ''}"


def _source(shard: TokenShard, document: int) -> str:
    try:
        runs: Any = json.loads(shard.path.with_suffix(".sources.json").read_bytes())
        for name, count in runs:
            if document < count:
                return str(name)
            document -= count
    except (OSError, ValueError, TypeError):
        pass  # only a name is missing; the number says the same
    return ""

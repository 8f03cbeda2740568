"""Rows of running text, and what each objective makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.objectives import denoise, spans
from jaxgen.data.objectives.alphabet import Alphabet
from jaxgen.data.objectives.masked import Masking, hide
from jaxgen.data.pack import Batch
from jaxgen.data.random import uniform
from jaxgen.data.rows import AS_IT_LIES, Windows
from jaxgen.data.shard import TokenShard

Keys = UInt64[np.ndarray, "B"]
Tokens = Int[np.ndarray, "B T"]


@runtime_checkable
class Recipe(Protocol):
    """Makes a batch of whole rows of text."""

    def __call__(self, tokens: np.ndarray, keys: np.ndarray) -> Batch: ...


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of `windows.width` tokens, documents end to end as T5 and RoBERTa lay them.

    In an epoch each token is in one row, but for those that fill the last up; read in order, the
    last row begins early enough to end with the text.
    """

    windows: Windows
    recipe: Recipe
    name: str

    @property
    def shard(self) -> TokenShard:
        """The tokens."""
        return self.windows.shard

    @property
    def count(self) -> int:
        """Rows that hold every token."""
        return -(-len(self.shard.tokens) // self.windows.width)

    def batch(self, rows: Int[np.ndarray, "B"], epochs: Int[np.ndarray, "B"], keys: Keys) -> Batch:
        """Return the batch that the recipe makes; rows of padding weigh nothing."""
        count, width = len(self.shard.tokens), self.windows.width
        starts = self.windows.offsets(epochs) + rows * width
        last = max(count - width, 0)
        starts = np.where(epochs == AS_IT_LIES, np.minimum(starts, last), starts)
        starts = np.where(rows < 0, 0, starts) % count
        tokens = self.shard.tokens[(starts[:, None] + np.arange(width)) % count]
        batch = self.recipe(tokens.astype(np.int64), keys)
        real = (rows >= 0)[:, None]
        return batch | {
            "weights": np.where(real, batch["weights"], 0).astype(np.float32),
            "index": np.where(rows < 0, -1, starts).astype(np.int64),
        }


@dataclass(frozen=True, eq=False)
class Masked:
    """BERT: tokens [B, T] with some hidden, and the text as targets."""

    masking: Masking
    alphabet: Alphabet

    def __call__(self, tokens: Tokens, keys: Keys) -> Batch:
        """Return tokens, targets, weights, segments and positions."""
        alphabet = self.alphabet
        special = [token for token in (alphabet.bos, alphabet.eos) if token is not None]
        starts = np.ones_like(tokens, bool) if alphabet.words is None else alphabet.words[tokens]
        read, weights = hide(tokens, ~np.isin(tokens, special), starts, keys, self.masking)
        return _one_segment(
            {"tokens": read, "targets": tokens.astype(np.int32), "weights": weights}
        )


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first part of a row is given, from one token to all but one; the rest is predicted.

    An encoder reads it where there is one (T5's prefix language model); else the decoder does,
    from both sides if the model's prompt is.
    """

    towers: str
    start: int

    def __call__(self, tokens: Tokens, keys: Keys) -> Batch:
        """Return a decoder's batch, or an encoder-decoder's."""
        width = tokens.shape[1]
        cut = 1 + (uniform(keys, 1, stream=1) * (width - 1)).astype(np.int64)
        places = np.arange(width)[None]
        if self.towers == "decoder":
            in_prefix = places < cut - 1
            batch = {
                "tokens": tokens.astype(np.int32),
                "targets": np.roll(tokens, -1, axis=1).astype(np.int32),
                "weights": (~in_prefix & (places < width - 1)).astype(np.float32),
            }
            prefix = np.broadcast_to(places < cut, tokens.shape).astype(np.int32)
            return _one_segment(batch) | {"prefix": prefix}
        around = np.minimum(cut + places, width - 1)
        target = np.where(places < width - cut, np.take_along_axis(tokens, around, axis=1), 0)
        source = np.where(places < cut, tokens, 0)
        return two_towers(source, cut[:, 0], target, width - cut[:, 0], self.start)


@dataclass(frozen=True, eq=False)
class Spans:
    """T5: text with spans behind sentinels, and the spans as target."""

    rate: float
    span: float
    alphabet: Alphabet

    def __call__(self, tokens: Tokens, keys: Keys) -> Batch:
        """Return an encoder-decoder's batch without padding."""
        alphabet = self.alphabet
        assert alphabet.eos is not None and alphabet.start is not None
        noise = spans.noise_mask(keys, tokens.shape[1], self.rate, self.span)
        sentinels = np.asarray(alphabet.sentinels, np.int64)
        source, target = spans.corrupt(tokens, noise, sentinels, alphabet.eos)
        lengths = [np.full(len(tokens), side.shape[1]) for side in (source, target)]
        return two_towers(source, lengths[0], target, lengths[1], alphabet.start)


@dataclass(frozen=True, eq=False)
class Denoise:
    """BART: sentences permuted and spans infilled, and the text itself as target."""

    rate: float
    span: float
    alphabet: Alphabet

    def __call__(self, tokens: Tokens, keys: Keys) -> Batch:
        """Return an encoder-decoder's batch; the source is padded to the width of the text."""
        alphabet = self.alphabet
        assert alphabet.mask is not None and alphabet.start is not None
        ends = np.zeros_like(tokens, bool) if alphabet.ends is None else alphabet.ends[tokens]
        mixed = denoise.permute(tokens, ends, keys)
        source, sizes = denoise.infill(
            mixed, keys, rate=self.rate, span=self.span, mask=alphabet.mask
        )
        lengths = np.full(len(tokens), tokens.shape[1])
        return two_towers(source, sizes, tokens, lengths, alphabet.start)


def two_towers(
    source: np.ndarray, sources: np.ndarray, target: np.ndarray, targets: np.ndarray, start: int
) -> Batch:
    """Return an encoder-decoder's batch of one pair a row; sources, targets: lengths [B]."""
    batch: Batch = {}
    for prefix, side, sizes in (("source_", source, sources), ("", target, targets)):
        places = np.broadcast_to(np.arange(side.shape[1]), side.shape)
        inside = places < sizes[:, None]
        batch[f"{prefix}segments"] = inside.astype(np.int32)
        batch[f"{prefix}positions"] = np.where(inside, places, 0).astype(np.int32)
    tokens = np.roll(target, 1, axis=1)
    tokens[:, 0] = start
    return batch | {
        "source": source.astype(np.int32),
        "tokens": np.where(batch["segments"] > 0, tokens, 0).astype(np.int32),
        "targets": target.astype(np.int32),
        "weights": (batch["segments"] > 0).astype(np.float32),
    }


def _one_segment(batch: Batch) -> Batch:
    shape = batch["tokens"].shape
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return batch | {"segments": np.ones(shape, np.int32), "positions": places.copy()}

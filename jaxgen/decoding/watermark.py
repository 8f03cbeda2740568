"""A watermark in the choice of tokens, and its detector (Kirchenbauer et al. 2023, 2024).

A keyed hash of the last tokens and a candidate colours the candidate green with probability
`ratio`; green logits are raised. Unlike the paper's permutation of the vocabulary, the hash
colours each token on its own, so the detector asks for one colour per token of the text and
needs no model. Lists of transformers, which come from torch's generator, are other lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.decoding.past import Needs, Past, last
from jaxgen.decoding.record import record
from jaxgen.decoding.setting import checked, column, whole
from jaxgen.decoding.shape import static
from jaxgen.errors import ConfigError


@record
@dataclass(frozen=True)
class Watermark:
    """Adds `bias` to the green logits that `key` and the last `width` tokens choose."""

    needs: ClassVar[Needs] = "tokens"
    name: ClassVar[str] = "watermark"
    key: Any
    ratio: Any
    bias: Any
    width: int = static(1)

    def __call__(self, logits: Float[Array, "B V"], past: Past) -> Float[Array, "B V"]:
        window = last(past, self.width).astype(jnp.uint32)
        candidates = jnp.arange(logits.shape[-1], dtype=jnp.uint32)
        hashed = _hashed(column(self.key), [window[:, i, None] for i in range(self.width)])
        green = _hashed(hashed, [candidates]) < _level(column(self.ratio))
        whole_window = past.known()[1][:, None] >= self.width
        return jnp.where(green & whole_window, logits + column(self.bias), logits)


class Detection(NamedTuple):
    """What a detector found in each text; z and p belong to "no watermark"."""

    scored: np.ndarray
    green: np.ndarray
    z: np.ndarray
    p: np.ndarray


def watermark(key: int, *, ratio: Any = 0.25, bias: Any = 2.0, width: int = 1) -> Watermark:
    """Return a processor that raises a secret share `ratio` of the vocabulary by `bias`.

    key: the secret, 0 to 2^32 - 1. width: how many earlier tokens choose the share.
    Raises ConfigError for a ratio outside (0, 1), or another setting out of range.
    """
    if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not 0 <= key < 2**32:
        raise ConfigError(f"watermark key={key} must be a whole number from 0 to 2^32 - 1")
    checked("ratio", ratio, lambda x: (x > 0) & (x < 1), "greater than 0 and less than 1")
    checked("bias", bias, lambda x: abs(x) < math.inf, "a finite number")
    return Watermark(np.uint32(key), ratio, bias, int(whole("width", width, 1)))


def detect(
    mark: Watermark, tokens: Any, lengths: Any = None, *, repeats: Literal["each", "once"] = "each"
) -> Detection:
    """Return how green texts are, for the watermark's key, ratio and width (scalars).

    tokens: ids [B, S] on the host, best without the prompt; lengths: [B], how much is real.
    repeats: "once" counts equal n-grams of width + 1 once, so that a loop proves nothing.
    z: standard deviations above chance; p: the chance of that z or more. Both NaN if no token
    has `width` others before it. Raises ConfigError for what are no ids or lengths.
    """
    if repeats not in ("each", "once"):
        raise ConfigError(f"repeats={repeats!r} must be 'each' or 'once'")
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ConfigError(
            f"tokens of shape {tokens.shape} and dtype {tokens.dtype} must be ids [B, S]"
        )
    lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else np.asarray(lengths)
    if lengths.shape != tokens.shape[:1] or ((lengths < 0) | (lengths > tokens.shape[1])).any():
        raise ConfigError(
            f"lengths={np.array2string(lengths, threshold=8)} must be {len(tokens)} numbers from 0 "
            f"to {tokens.shape[1]}"
        )
    if (tokens[np.arange(tokens.shape[1]) < lengths[:, None]] < 0).any():
        raise ConfigError("tokens hold a negative id; say by lengths= where texts end")
    scored, green = np.zeros(len(tokens)), np.zeros(len(tokens))
    for row, (ids, length) in enumerate(zip(tokens, lengths, strict=True)):
        if length <= mark.width:
            continue
        ngrams = np.lib.stride_tricks.sliding_window_view(ids[:length], mark.width + 1)
        ngrams = np.unique(ngrams, axis=0) if repeats == "once" else ngrams
        columns = [ngrams[:, i].astype(np.uint32) for i in range(mark.width + 1)]
        colours = _hashed(np.asarray(mark.key, np.uint32), columns) < _level(mark.ratio)
        scored[row], green[row] = len(ngrams), np.sum(colours)
    ratio = float(mark.ratio)
    with np.errstate(invalid="ignore"):
        z = (green - ratio * scored) / np.sqrt(scored * ratio * (1 - ratio))
    p = np.asarray([0.5 * math.erfc(value / math.sqrt(2)) for value in z])
    return Detection(scored.astype(int), green.astype(int), z, p)


def _level(ratio: Any) -> Array:
    return (jnp.asarray(ratio, jnp.float32) * 2.0**32).astype(jnp.uint32)


def _hashed(state: Any, words: list[Any]) -> Array:
    """Mix `words` one after the other into `state`: 32 bits, the last steps of murmur3."""
    state = jnp.asarray(state, jnp.uint32)
    for word in words:
        word = jnp.asarray(word)
        state, word = jnp.broadcast_arrays(state, word)
        state = state ^ (word * jnp.uint32(0x9E3779B1) + jnp.uint32(0x7F4A7C15))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            state = (state ^ (state >> shift)) * jnp.uint32(factor)
        state = state ^ (state >> 16)
    return state

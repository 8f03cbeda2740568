"""A watermark in the choice of tokens, and its detector (Kirchenbauer et al. 2023, 2024).

A keyed hash of the last tokens and a candidate colours the candidate green with probability
`ratio`; green logits are raised. Unlike the paper's permutation of the vocabulary, the hash
colours each token on its own, so the detector asks for one colour per token of the text and
needs no model. Lists of transformers, which come from torch's generator, are other lists.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.arguments import Range, at_least, between
from jaxgen.decoding.history import History, Requires, last_tokens
from jaxgen.decoding.per_request import Number, column
from jaxgen.decoding.processors.base import processor, static


@processor()
class Watermark:
    """Add `bias` to the green logits that `key` and the last `width` tokens choose."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "watermark"
    key: Number
    ratio: Number
    bias: Number
    width: int = static(1)

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        window = last_tokens(history, self.width).astype(jnp.uint32)
        candidates = jnp.arange(logits.shape[-1], dtype=jnp.uint32)
        hashed = _hashed(column(self.key), [window[:, i, None] for i in range(self.width)])
        green = _hashed(hashed, [candidates]) < _level(column(self.ratio))
        whole_window = history.tokens_and_length()[1][:, None] >= self.width
        return jnp.where(green & whole_window, logits + column(self.bias), logits)


class Detection(NamedTuple):
    """The test of each text [B] against the hypothesis of no watermark."""

    scored: np.ndarray  # tokens that have a colour
    green: np.ndarray  # of them, the green ones
    z: np.ndarray  # standard deviations above chance; NaN if no token is scored
    p: np.ndarray  # probability of that z or more by chance


@arguments.checked(
    key=between(0, 2**32 - 1),
    ratio=between(0, 1, above=True, below=True),
    bias=Range(),
    width=at_least(1),
)
def watermark(key: int, *, ratio: Number = 0.25, bias: Number = 2.0, width: int = 1) -> Watermark:
    """Return a processor that raises a secret share of the vocabulary (Kirchenbauer et al. 2023).

    Args:
        key: the secret, 0 to 2^32 - 1.
        ratio: share of the vocabulary that is raised, number or [B] in (0, 1).
        bias: what is added to its logits, number or [B].
        width: number of earlier tokens that choose the share, at least 1. Raises ConfigError
            outside these ranges.

    >>> history = History(jnp.array([0]), jnp.array([[1]]), jnp.array([1]))
    >>> jaxgen.watermark(7, ratio=0.5)(jnp.zeros((1, 4)), history)
    Array([[2., 0., 2., 2.]], dtype=float32)
    """
    return Watermark(np.uint32(key), ratio, bias, width)


@arguments.checked(tokens=at_least(0, real="lengths"), lengths=between(0, "S"))
def detect(
    mark: Watermark,
    tokens: Int[Array | np.ndarray, "B S"],
    lengths: Int[Array | np.ndarray, "B"] | None = None,
    *,
    repeats: Literal["each", "once"] = "each",
) -> Detection:
    """Return the statistical test of texts for a watermark.

    Args:
        mark: the `watermark`, of one ratio.
        tokens: ids [B, S] on the host, best without the prompt, padded on the right.
        lengths: valid ids of each text [B], at most S; None for all. Raises ConfigError outside.
        repeats: "once" counts equal n-grams of width + 1 once, so that a loop proves nothing.

    Returns:
        Detection: counts, z and p of each text.

    >>> test = jaxgen.detect(jaxgen.watermark(7), jnp.array([[1, 2, 3, 1]]))
    >>> test.scored, test.green
    (array([3]), array([2]))
    """
    tokens = np.asarray(tokens)
    lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else np.asarray(lengths)
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

"""N-grams of any order with interpolated modified Kneser-Ney smoothing, as sorted arrays.

Chen and Goodman 1998; the choices that their paper leaves open are those of KenLM's lmplz
(Heafield et al. 2013): closed discounts per order, unigrams interpolated with the uniform
distribution, n-grams that begin a document keep their own counts.

Params are {"1": {"logp", "backoff"}, "2": {"words", "starts", "logp", "backoff"}, ...}. The n-grams
of an order lie context by context, a context being an n-gram of the order below: those of context c
are starts[c] .. starts[c + 1], their last tokens ascending in `words`. Logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic.documents import check_documents, check_rows
from jaxgen.models.classic.prompt import consume

Params = dict[str, dict[str, Any]]
FALLBACK = (0.0, 0.5, 1.0, 1.5)  # lmplz --discount_fallback: for orders with too few counts
CHUNK = 128  # children of a context read at once on the device


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class NGram:
    """Sizes of an n-gram; raises ConfigError naming the field at fault.

    begin: the id that begins every document and is never predicted; None: an id outside the
    vocabulary is prepended.
    """

    vocab_size: int
    order: int
    begin: int | None = None

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ConfigError(f"order={self.order} must be at least 1")
        if self.vocab_size < 1:
            raise ConfigError(f"vocab_size={self.vocab_size} must be at least 1")
        if self.begin is not None and not 0 <= self.begin < self.vocab_size:
            raise ConfigError(f"begin={self.begin} is outside the vocabulary of {self.vocab_size}")

    @property
    def size(self) -> int:
        """Return the number of ids with the one that begins documents."""
        return self.vocab_size + (self.begin is None)

    @property
    def first(self) -> int:
        """Return the id that begins documents."""
        return self.vocab_size if self.begin is None else self.begin


class _Level(NamedTuple):
    """The distinct n-grams of an order: context, last word, shortened by its first word, count."""

    context: np.ndarray
    words: np.ndarray
    suffix: np.ndarray
    counts: np.ndarray
    begins: np.ndarray  # whether its first word begins a document


def train(config: NGram, tokens: np.ndarray, offsets: np.ndarray) -> Params:
    """Return the params estimated from documents: tokens [N], offsets [documents + 1].

    Orders whose counts of counts give no discount take lmplz's fallback of 0.5, 1 and 1.5.
    Raises DataError for no tokens, ids outside the vocabulary, or a document without `begin`.
    """
    ids, positions = _flatten_documents(config, tokens, offsets)
    levels = list(_levels(config, ids, positions))
    unigrams = np.bincount(levels[0].suffix if levels else ids, minlength=config.size)
    unigrams[config.first] = 0
    p, params = _unigrams(config, unigrams)
    for n, level in enumerate(levels, start=2):
        counts = level.counts
        if n < config.order:
            left = np.bincount(levels[n - 1].suffix, minlength=len(counts))
            counts = np.where(level.begins, counts, left)
        contexts = len(p)
        p, backoff = _interpolate(level, counts, p, contexts)
        params[str(n - 1)]["backoff"] = _log(backoff)
        starts = np.searchsorted(level.context, np.arange(contexts + 1))
        params[str(n)] = {
            "words": level.words.astype(np.int32),
            "starts": starts.astype(np.int32),
            "logp": _log(p),
            "backoff": np.zeros(len(p), np.float32),
        }
    return params


def _flatten_documents(config: NGram, tokens: np.ndarray, offsets: np.ndarray):
    """Return (ids, position of each in its document), with the begin id before every document."""
    ids, offsets = check_documents(tokens, offsets, config.vocab_size)
    starts = offsets[:-1][np.diff(offsets) > 0]
    if config.begin is None:
        ids = np.insert(ids, starts, config.first)
        starts = starts + np.arange(len(starts))
    elif (ids[starts] != config.begin).any():
        raise DataError(f"a document does not begin with id {config.begin}; put it before each")
    lengths = np.diff(np.append(starts, len(ids)))
    return ids, np.arange(len(ids)) - np.repeat(starts, lengths)


def _levels(config: NGram, ids: np.ndarray, positions: np.ndarray) -> Iterator[_Level]:
    node = ids
    for n in range(2, config.order + 1):
        at = np.flatnonzero(positions >= n - 1)
        keys = node[at - 1] * config.size + ids[at]
        unique_keys, first, inverse, counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        where = at[first]
        context, words = unique_keys // config.size, unique_keys % config.size
        yield _Level(context, words, node[where], counts, positions[where] == n - 1)
        node = np.full(len(ids), -1)
        node[at] = inverse


def discounts(counts: np.ndarray) -> np.ndarray:
    """Return [4] discounts of counts 0, 1, 2 and 3 or more, in closed form from counts of counts.

    FALLBACK where a count from 1 to 4 never occurs, or a discount lies outside [0, count].
    """
    t = [int((counts == k).sum()) for k in range(5)]
    if not all(t[1:]):
        return np.asarray(FALLBACK)
    y = t[1] / (t[1] + 2 * t[2])
    by_count = np.asarray([0.0, *(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))])
    sound = (by_count >= 0).all() and (by_count <= np.arange(4)).all()
    return by_count if sound else np.asarray(FALLBACK)


def _unigrams(config: NGram, counts: np.ndarray) -> tuple[np.ndarray, Params]:
    discount = discounts(counts)[np.minimum(counts, 3)]
    if not counts.sum():
        raise DataError("the documents hold nothing but their begin; give some text")
    uniform = np.full(config.size, discount.sum() / counts.sum())
    uniform /= config.size - 1
    p = (counts - discount) / counts.sum() + uniform
    p[config.first] = 0
    return p, {"1": {"logp": _log(p), "backoff": np.zeros(config.size, np.float32)}}


def _interpolate(level: _Level, counts, lower, contexts) -> tuple[np.ndarray, np.ndarray]:
    """Return (probabilities of the n-grams, back-off weight of each context)."""
    discount = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(level.context, weights=counts, minlength=contexts)
    discounted = np.bincount(level.context, weights=discount, minlength=contexts)
    backoff = np.divide(discounted, total, out=np.ones(contexts), where=total > 0)
    own = (counts - discount) / total[level.context]
    return own + backoff[level.context] * lower[level.suffix], backoff


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p).astype(np.float32)


def score(
    params: Params, config: NGram, tokens: np.ndarray, offsets: np.ndarray
) -> Float[np.ndarray, "N"]:
    """Return the log probability of each token of the documents after all before it; 0 for begin.

    tokens [N] and offsets [documents + 1] as in `train`, on the host; raises what `train` does.
    """
    ids, positions = _flatten_documents(config, tokens, offsets)
    logp = params["1"]["logp"][ids].astype(np.float64)
    node = ids
    for n in range(2, config.order + 1):
        level, backoff = params[str(n)], params[str(n - 1)]["backoff"]
        if not len(level["words"]):
            break  # no n-gram of this order or a higher one was seen
        at = np.flatnonzero((positions >= n - 1) & (np.roll(node, 1) >= 0))
        context = node[at - 1]
        hit = _children(level, config.size, context * config.size + ids[at])
        exists = hit >= 0
        logp[at] = np.where(exists, level["logp"][hit], logp[at] + backoff[context])
        node = np.full(len(ids), -1)
        node[at] = hit
    return logp[positions > 0] if config.begin is None else np.where(positions > 0, logp, 0.0)


def _children(level: dict[str, Any], size: int, queries: np.ndarray) -> np.ndarray:
    """Return the index of each query (context * size + word) among the n-grams, or -1."""
    contexts = np.repeat(np.arange(len(level["starts"]) - 1), np.diff(level["starts"]))
    keys = contexts * size + level["words"]
    order = np.argsort(queries)  # sorted queries hit the same cache lines: several times as fast
    places = np.minimum(np.searchsorted(keys, queries[order]), len(keys) - 1)
    index = np.empty(len(queries), np.int64)
    index[order] = np.where(keys[places] == queries[order], places, -1)
    return index


def start(config: NGram, batch: int) -> Int[Array, "B K"]:
    """Return the decoding cache before the first token: index of the longest n-grams that end here.

    K = max(order - 1, 1), one index for each order; -1: no such n-gram.
    """
    nodes = jnp.full((batch, max(config.order - 1, 1)), -1, jnp.int32)
    return nodes if config.begin is not None else nodes.at[:, 0].set(config.first)


def step(params: Params, config: NGram) -> Callable[..., tuple[Array, Array]]:
    """Return the n-gram as a decoding step: (tokens [B], cache) -> (logits [B, V], cache).

    Logits are normalised log probabilities; that of `begin` is -inf.
    """

    def run(tokens, nodes):
        nodes = read(params, config, tokens, nodes)
        return following(params, config, nodes), nodes

    return run


def read(
    params: Params, config: NGram, tokens: Int[Array, "B"], nodes: Int[Array, "B K"]
) -> Int[Array, "B K"]:
    """Return the cache after one more token of each row."""
    longer = [tokens.astype(jnp.int32)]
    for n in range(2, config.order):
        longer.append(child(params[str(n)], nodes[:, n - 2], tokens, config.size.bit_length()))
    return jnp.stack(longer, axis=1)


def prefill(
    params: Params, config: NGram, prompt: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Int[Array, "B"], Int[Array, "B K"]]:
    """Return (first, cache): all of each prompt but its last token read, and that last token."""
    check_rows(prompt, lengths, config.vocab_size)
    reading = partial(read, params, config)
    return consume(reading, start(config, prompt.shape[0]), prompt, lengths)


def child(level: dict[str, Any], context: Array, word: Array, halvings: int) -> Array:
    """Return the index of (context, word) by bisection among the context's children, or -1."""
    starts, words = jnp.asarray(level["starts"]), jnp.asarray(level["words"])
    if not words.size:
        return jnp.full(context.shape, -1, jnp.int32)
    low, end = starts[jnp.maximum(context, 0)], starts[jnp.maximum(context, 0) + 1]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        right = (low < high) & (words[jnp.minimum(middle, words.size - 1)] < word)
        return jnp.where(right, middle + 1, low), jnp.where(right | (low >= high), high, middle)

    low, _ = lax.fori_loop(0, halvings + 1, halve, (low, end))
    hit = (low < end) & (words[jnp.minimum(low, words.size - 1)] == word) & (context >= 0)
    return jnp.where(hit, low, -1).astype(jnp.int32)


def following(params: Params, config: NGram, nodes: Int[Array, "B K"]) -> Float[Array, "B V"]:
    """Return the log probability of each next token given the cache."""
    batch = nodes.shape[0]
    unigrams = jnp.asarray(params["1"]["logp"])
    logits = jnp.broadcast_to(unigrams, (batch, config.size))
    for n in range(2, config.order + 1):
        context = nodes[:, n - 2]
        backoff = jnp.asarray(params[str(n - 1)]["backoff"])[jnp.maximum(context, 0)]
        logits = logits + jnp.where(context >= 0, backoff, 0.0)[:, None]
        logits = overwrite(params[str(n)], context, logits)
    return logits[:, : config.vocab_size]


def overwrite(level: dict[str, Any], context: Array, logits: Array) -> Array:
    """Overwrite the backed-off log probabilities of the words seen after a context."""
    starts, words = jnp.asarray(level["starts"]), jnp.asarray(level["words"])
    logp, rows = jnp.asarray(level["logp"]), jnp.arange(logits.shape[0])[:, None]
    if not words.size:
        return logits
    low = starts[jnp.maximum(context, 0)]
    end = jnp.where(context >= 0, starts[jnp.maximum(context, 0) + 1], low)

    def more(carry):
        position, logits = carry
        child = position[:, None] + jnp.arange(CHUNK)
        own, child = child < end[:, None], jnp.minimum(child, words.size - 1)
        column = jnp.where(own, words[child], logits.shape[1])
        return position + CHUNK, logits.at[rows, column].set(logp[child], mode="drop")

    return lax.while_loop(lambda carry: jnp.any(carry[0] < end), more, (low, logits))[1]


def on_device(params: Params) -> Params:
    """Return the params as device arrays, to be passed to a jitted function."""
    return jax.tree.map(jnp.asarray, params)

"""Templates induced from a corpus: frames of frequent words with slots for the others.

Frames are found as LogCluster finds them (Vaarandi and Pihelgas 2015): the words of most sentences
are fixed, a run of other words is a slot, and what `support` sentences share is a frame.

As a generator, the frames are a trie that every sentence walks deterministically. A node gives its
seen words probability by absolute discounting and the rest to an n-gram, so that any text has a
probability above zero.

Params: ends [V] and fixed [V]; of the nodes: starts [nodes + 1], slot [nodes] (the node of a run
of other words, -1 without one), backoff [nodes]; of the words seen at a node: words, p, target (the
node after it, -1 outside the tree); ngram. Node 0 begins a sentence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgen.errors import ConfigError
from jaxgen.models.classic import ngram
from jaxgen.models.classic.documents import check_documents, check_rows
from jaxgen.models.classic.ngram import NGram
from jaxgen.models.classic.prompt import consume

Params = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Template:
    """Sizes of a template model; raises ConfigError naming the field at fault.

    fixed: number of ids, most frequent by sentence, used as words of frames. support: least number
    of sentences of a frame or its prefix. longest: words and slots of a frame. order: of the n-gram
    used outside frames. begin: as of `NGram`.
    """

    vocab_size: int
    fixed: int
    support: int
    longest: int
    order: int
    begin: int | None = None

    def __post_init__(self) -> None:
        self.ngram()
        for name in ("fixed", "support", "longest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def ngram(self) -> NGram:
        """Return the sizes of the n-gram used outside frames."""
        return NGram(vocab_size=self.vocab_size, order=self.order, begin=self.begin)


class Frame(NamedTuple):
    """A template: number of its sentences; ids and slots (None); texts of each slot."""

    num_sentences: int
    parts: tuple[int | None, ...]
    fillers: tuple[Counter[tuple[int, ...]], ...]


class Cache(NamedTuple):
    """Position of each row: node of the tree, -1 outside; and the cache of the n-gram."""

    node: Int[Array, "B"]
    nodes: Int[Array, "B K"]


def frames(
    config: Template,
    tokens: np.ndarray,
    offsets: np.ndarray,
    ends: Bool[np.ndarray, "V"],
) -> list[Frame]:
    """Return the frames of at least `support` sentences, the commonest first.

    ends: the ids that end a sentence. Raises DataError as `ngram.train` does for bad documents.
    """
    ids, start = _sentences(config, tokens, offsets, ends)
    fixed = _fixed(config, ids, start)
    fillers_by_frame: dict[tuple[int | None, ...], list[list[tuple[int, ...]]]] = {}
    bounds = [*np.flatnonzero(start), len(ids)]
    for begin, end in pairwise(bounds):
        parts: list[int | None] = []
        fillers: list[tuple[int, ...]] = []
        for is_fixed, run in groupby(ids[begin:end].tolist(), key=lambda i: bool(fixed[i])):
            words = tuple(run)
            parts += words if is_fixed else [None]
            fillers += [] if is_fixed else [words]
        if len(parts) <= config.longest and any(part is not None for part in parts):
            fillers_by_frame.setdefault(tuple(parts), []).append(fillers)
    frequent = [
        Frame(len(rows), parts, tuple(Counter(column) for column in zip(*rows, strict=True)))
        for parts, rows in fillers_by_frame.items()
        if len(rows) >= config.support
    ]
    return sorted(frequent, key=lambda frame: -frame.num_sentences)


def as_grammar(
    frames: Sequence[Frame], decode: Callable[[Sequence[int]], str]
) -> tuple[str, dict[str, list[str]]]:
    """Return (text, slots) of frames for `grammar.parse` and `grammar.sample`, weighed as found."""
    ways, slots = [], {}
    for n, frame in enumerate(frames):
        words, k = [f"{frame.num_sentences}:"], 0
        for empty, run in groupby(frame.parts, key=lambda part: part is None):
            if not empty:
                words.append(json.dumps(decode([part for part in run if part is not None])))
                continue
            slots[f"s{n}_{k}"] = [decode(ids) for ids in frame.fillers[k].elements()]
            words.append(f"{{s{n}_{k}}}")
            k += 1
        ways.append(" ".join(words))
    return f"S -> {' | '.join(ways)}\n", slots


def train(
    config: Template,
    tokens: np.ndarray,
    offsets: np.ndarray,
    ends: Bool[np.ndarray, "V"],
) -> Params:
    """Return the params estimated from documents: tokens [N], offsets [documents + 1].

    ends: the ids that end a sentence. Raises DataError as `ngram.train` does.
    """
    lower = ngram.train(config.ngram(), tokens, offsets)
    ids, start = _sentences(config, tokens, offsets, ends)
    fixed = _fixed(config, ids, start)
    node, slots = _grow_tree(config, ids, start, fixed)
    before = np.where(start, 0, np.roll(node, 1))
    at = np.flatnonzero(before >= 0)
    keys, first, counts = np.unique(
        before[at] * config.vocab_size + ids[at], return_index=True, return_counts=True
    )
    context, words = keys // config.vocab_size, keys % config.vocab_size
    total = np.bincount(context, weights=counts, minlength=len(slots))
    # One discount for all nodes, the leave-one-out estimate of Ney et al. 1994.
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once else 0.5
    kinds = np.bincount(context, minlength=len(slots))
    backoff = np.divide(discount * kinds, total, out=np.ones(len(slots)), where=total > 0)
    return {
        "ends": np.asarray(ends, bool),
        "fixed": fixed,
        "starts": np.searchsorted(context, np.arange(len(slots) + 1)).astype(np.int32),
        "slot": slots.astype(np.int32),
        "backoff": backoff.astype(np.float32),
        "words": words.astype(np.int32),
        "p": ((counts - discount) / total[context]).astype(np.float32),
        "target": np.where(ends[words], 0, node[at[first]]).astype(np.int32),
        "ngram": lower,
    }


def _sentences(config: Template, tokens, offsets, ends) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids without the begin of documents, where a sentence starts)."""
    if np.shape(ends) != (config.vocab_size,):
        raise ConfigError(f"ends has shape {np.shape(ends)}, not one entry for each id")
    ids, offsets = check_documents(tokens, offsets, config.vocab_size)
    start = np.zeros(len(ids) + 1, bool)
    start[offsets[:-1]] = True
    start[1:] |= np.asarray(ends)[ids]
    if config.begin is None:
        return ids, start[:-1]
    start[1:] |= ids == config.begin
    real = ids != config.begin
    return ids[real], start[:-1][real]


def _fixed(config: Template, ids: np.ndarray, start: np.ndarray) -> Bool[np.ndarray, "V"]:
    """Return which ids are words of frames: those of most sentences."""
    pairs = np.unique(np.cumsum(start) * config.vocab_size + ids)
    shared = np.bincount(pairs % config.vocab_size, minlength=config.vocab_size)
    order = np.argsort(-shared, kind="stable")[: config.fixed]
    fixed = np.zeros(config.vocab_size, bool)
    fixed[order[shared[order] >= config.support]] = True
    return fixed


def _grow_tree(config: Template, ids, start, fixed) -> tuple[np.ndarray, np.ndarray]:
    """Return (node after each token, -1 outside the tree; each node's slot)."""
    symbols = np.where(fixed[ids], ids, config.vocab_size)
    other = symbols == config.vocab_size
    # A run of other words is one symbol and one node.
    new = start | ~(other & np.roll(other, 1))
    heads = np.flatnonzero(new)
    depth = np.cumsum(new) - np.maximum.accumulate(np.where(start, np.cumsum(new), 0)) + 1
    node, nodes, slots = np.full(len(ids), -1), 1, [np.full(1, -1)]
    run = np.maximum.accumulate(np.where(new, np.arange(len(ids)), 0))
    for level in range(1, config.longest + 1):
        at = heads[depth[heads] == level]
        parent = np.zeros(len(at), np.int64) if level == 1 else node[run[at - 1]]
        at, parent = at[parent >= 0], parent[parent >= 0]
        keys = parent * (config.vocab_size + 1) + symbols[at]
        unique_keys, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        frequent = counts >= config.support
        number = np.where(frequent, nodes + np.cumsum(frequent) - 1, -1)
        node[at] = number[inverse]
        is_slot = unique_keys[frequent] % (config.vocab_size + 1) == config.vocab_size
        slots.append(np.where(is_slot, number[frequent], -1))
        table = np.concatenate(slots)
        table[unique_keys[frequent][is_slot] // (config.vocab_size + 1)] = number[frequent][is_slot]
        slots, nodes = [table], nodes + int(frequent.sum())
    return node[run], slots[0]


def start(config: Template, batch: int) -> Cache:
    """Return the decoding cache before the first token."""
    return Cache(jnp.zeros(batch, jnp.int32), ngram.start(config.ngram(), batch))


def read(params: Params, config: Template, tokens: Int[Array, "B"], cache: Cache) -> Cache:
    """Return the cache after one more token of each row."""
    child = ngram.child(params, cache.node, tokens, config.vocab_size.bit_length())
    target = jnp.asarray(params["target"])[jnp.maximum(child, 0)]
    inside = jnp.where(child >= 0, target, -1)
    slot = jnp.where(cache.node >= 0, jnp.asarray(params["slot"])[cache.node], -1)
    node = jnp.where(jnp.asarray(params["fixed"])[tokens], inside, slot)
    ends = jnp.asarray(params["ends"])[tokens]
    if config.begin is not None:
        ends |= tokens == config.begin
    nodes = ngram.read(params["ngram"], config.ngram(), tokens, cache.nodes)
    return Cache(jnp.where(ends, 0, node).astype(jnp.int32), nodes)


def following(params: Params, config: Template, cache: Cache) -> Float[Array, "B V"]:
    """Return the log probability of each next token."""
    other = jnp.exp(ngram.following(params["ngram"], config.ngram(), cache.nodes))
    backoff = jnp.asarray(params["backoff"])[cache.node]
    left = jnp.where(cache.node >= 0, backoff, 1.0)[:, None]
    level = {"starts": params["starts"], "words": params["words"], "logp": params["p"]}
    own = ngram.overwrite(level, cache.node, jnp.zeros_like(other))
    return jnp.log(own + left * other)


def step(params: Params, config: Template) -> Callable[..., tuple[Array, Cache]]:
    """Return the templates as a decoding step: (tokens [B], cache) -> (logits [B, V], cache).

    Logits are normalised log probabilities; that of `begin` is -inf.
    """

    def run(tokens: Any, cache: Cache) -> tuple[Array, Cache]:
        cache = read(params, config, tokens, cache)
        return following(params, config, cache), cache

    return run


def prefill(
    params: Params, config: Template, prompt: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Int[Array, "B"], Cache]:
    """Return (first, cache): all of each prompt but its last token read, and that last token."""
    check_rows(prompt, lengths, config.vocab_size)
    reading = partial(read, params, config)
    return consume(reading, start(config, prompt.shape[0]), prompt, lengths)

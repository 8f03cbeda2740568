"""Constraints of a beam search: phrases that must appear, or one of several alternatives.

The semantics are those of transformers 4 (`PhrasalConstraint`, `DisjunctiveConstraint` and
`ConstrainedBeamSearchScorer`, after Post and Vilar 2018): a beam works on one word at a time, loses
its progress with a token that does not go on, and beams are taken alternately from banks of equal
progress, so that unlikely words are not crowded out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen import arguments
from jaxgen.arrays import Axes
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.per_request import next_power_of_two
from jaxgen.decoding.processors.base import static
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

Over = Literal["all", "new"]
SMALLEST = 8  # least size that words and nodes are padded to
BANK = 100.0  # as in transformers: the log-probability that one step of progress outweighs


class Progress(NamedTuple):
    """The progress of a beam with its words."""

    complete: Bool[Array, "... W"]
    waiting: Int[Array, "... W"]  # place in the queue: the smallest number is next
    node: Int[Array, "..."]  # position within a word; 0: in none


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class Words:
    """The words of each request: tries whose nodes are numbered from 1.

    parent (0: a word begins here), token, word, depth, leaf: of each node [1 or B, M].
    height: length of the longest alternative of each word [1 or B, W]; 0: no word.
    """

    parent: Any
    token: Any
    word: Any
    depth: Any
    leaf: Any
    height: Annotated[Any, Axes("integer", ("#B W",))]
    over: Over = static("new")
    made_by: ClassVar[str] = "must_appear"

    def rows(self, batch: int) -> Words:
        """Return the words with a row for each of `batch` requests."""

        def row(x):
            return jnp.broadcast_to(jnp.asarray(x), (batch, *np.shape(x)[1:]))

        return jax.tree.map(row, self)

    def begin(self, batch: int, prompt: Any, lengths: Any) -> Progress:
        """Return the progress before the first new token; over="all" counts the prompt's."""
        words = self.rows(batch)
        width = words.height.shape[-1]
        fresh = Progress(
            words.height == 0,
            jnp.broadcast_to(jnp.arange(width), (batch, width)),
            jnp.zeros(batch, jnp.int32),
        )
        if self.over == "new":
            return fresh
        if prompt is None:
            raise ConfigError("words over='all' count the prompt's; pass prompt= and lengths=")
        prompt = jnp.asarray(prompt, jnp.int32)
        num_valid = jnp.full(batch, prompt.shape[1]) if lengths is None else jnp.asarray(lengths)

        def one_more(i, progress):
            after = jax.vmap(_advance)(words, progress, prompt[:, i])
            return jax.tree.map(
                lambda new, old: jnp.where(
                    (i < num_valid).reshape(-1, *(1,) * (new.ndim - 1)), new, old
                ),
                after,
                progress,
            )

        return lax.fori_loop(0, prompt.shape[1], one_more, fresh)


@arguments.checked
def must_appear(words: Sequence[Sequence[Any]], *, over: Over = "new", each: bool = False) -> Words:
    """Return the words that the texts of a beam search must contain (Post and Vilar 2018).

    Args:
        words: [[3, 7], [[4], [5, 6]]] asks for 3 7, and for 4 or 5 6.
        over: "new" counts the new text alone, "all" the prompt too, as transformers does.
        each: whether `words` is a list of such lists, one for each request, which may be empty.

    Returns:
        Words, the argument `words=` of `beam_search`. A text without its words is returned only if
        too few have them: see `Decoded.constraints_met`.

    Raises:
        ConfigError: for an empty word, a negative id, or an alternative that begins another.

    >>> step = lambda tokens, cache: (jnp.tile(jnp.array([3.0, 2.0, 1.0]), (len(tokens), 1)), cache)
    >>> args = (step, (), jnp.array([0]), None, jaxgen.chain(), 2, jaxgen.beams(2))
    >>> jaxgen.beam_search(*args, words=jaxgen.must_appear([[2]])).tokens
    Array([[[0, 2]]], dtype=int32)
    """
    requests = [_tries(row) for row in (words if each else [words])]
    if not any(nodes for nodes, _ in requests):
        raise ConfigError(f"must_appear={words!r} names no word; leave it out")
    size = next_power_of_two(max(len(nodes) for nodes, _ in requests) + 1, SMALLEST)
    width = next_power_of_two(max(len(heights) for _, heights in requests), SMALLEST)
    columns = np.zeros((5, len(requests), size), np.int32)
    columns[1] = NO_TOKEN
    height = np.zeros((len(requests), width), np.int32)
    for row, (nodes, heights) in enumerate(requests):
        if nodes:
            columns[:, row, 1 : len(nodes) + 1] = np.asarray(nodes).T
        height[row, : len(heights)] = heights
    parent, token, word, depth, leaf = columns
    return Words(parent, token, word, depth, leaf.astype(bool), height, over)


def _tries(words: Sequence[Any]) -> tuple[list[list[int]], list[int]]:
    """Return ([parent, token, word, depth, leaf] of each node, height of each word)."""
    nodes: list[list[int]] = []
    heights: list[int] = []
    for number, word in enumerate(words):
        alternatives: list[Any] = [list(x) if isinstance(x, (list, tuple)) else x for x in word]
        if not any(isinstance(one, list) for one in alternatives):
            alternatives = [alternatives]
        node_of: dict[tuple[int, ...], int] = {(): 0}
        for one in alternatives:
            if not isinstance(one, list) or not one or not all(map(_is_id, one)):
                raise ConfigError(f"must_appear: {word!r} must be token ids, or lists of them")
            for end in range(1, len(one) + 1):
                start = tuple(one[:end])
                if start not in node_of:
                    nodes.append([node_of[start[:-1]], one[end - 1], number, end, 1])
                    node_of[start] = len(nodes)
                    if end > 1:
                        nodes[node_of[start[:-1]] - 1][4] = 0
        if sum(nodes[at - 1][4] for at in node_of.values() if at) != len(alternatives):
            raise ConfigError(f"must_appear: of {word!r} one alternative begins another; drop one")
        heights.append(max(len(one) for one in alternatives))
    return nodes, heights


def _is_id(one: Any) -> bool:
    return isinstance(one, (int, np.integer)) and not isinstance(one, bool) and bool(one >= 0)


def constraints_met(progress: Progress) -> Bool[Array, "..."]:
    """Return whether all words are there."""
    return jnp.all(progress.complete, axis=-1)


def _open(words: Words, progress: Progress) -> Bool[Array, "M"]:
    """Return the nodes that the next token may reach, for one beam of one request."""
    going = progress.node > 0
    mine = jnp.arange(progress.complete.shape[0]) == words.word[progress.node]
    pending = ~progress.complete & ~(going & mine)
    begins = (words.parent == 0) & pending[words.word]
    opened = jnp.where(going, words.parent == progress.node, begins)
    return opened & (words.token >= 0) & ~constraints_met(progress)


def _advance(words: Words, progress: Progress, token: Int[Array, ""]) -> Progress:
    """Return the progress of one beam of one request after one more token."""
    reached = _open(words, progress) & (words.token == token)
    # Of words that begin alike, the token counts for the one that has waited longest.
    queue = jnp.where(reached, progress.waiting[words.word], np.iinfo(np.int32).max)
    node, any_ = jnp.argmin(queue), jnp.any(reached)
    number = jnp.arange(progress.complete.shape[0])
    ended = any_ & words.leaf[node]
    broken = (progress.node > 0) & ~any_
    lost = broken & (number == words.word[progress.node])
    after = Progress(
        progress.complete | (ended & (number == words.word[node])),
        jnp.where(lost, jnp.max(progress.waiting) + 1, progress.waiting),
        jnp.where(any_ & ~ended, node, 0).astype(jnp.int32),
    )
    over = constraints_met(progress)
    return jax.tree.map(lambda new, old: jnp.where(over, old, new), after, progress)


def _bank(words: Words, progress: Progress) -> Int[Array, ""]:
    """Return the bank of a beam: its number of steps; a complete word counts as the longest."""
    longest = jnp.max(words.height)
    node = progress.node
    begun = longest - (words.height[words.word[node]] - words.depth[node])
    num_complete = jnp.sum(progress.complete & (words.height > 0))
    return num_complete * longest + jnp.where(node > 0, begun, 0)


def advance(words: Words, progress: Progress, tokens: Int[Array, "B K"]) -> Progress:
    """Return the progress of beams after one more token each; `words` has a row per request."""
    return jax.vmap(jax.vmap(_advance, (None, 0, 0)))(words, progress, tokens)


def choose(
    words: Words,
    progress: Progress,
    total: Float[Array, "B K V"],
    scores: Float[Array, "B K"],
    parent: Int[Array, "B K"],
    token: Int[Array, "B K"],
) -> tuple[Float[Array, "B K"], Int[Array, "B K"], Int[Array, "B K"]]:
    """Return (scores, parent, token) of the beams that go on.

    Candidates are the best by score (`scores, parent, token`) and every beam with each next token
    of its words; they are taken alternately from the banks of equal progress, the most advanced
    bank first.
    """
    return jax.vmap(_choose)(words, progress, total, scores, parent, token)


def _choose(words, progress, total, scores, parent, token):
    count, vocab = total.shape
    opened = jax.vmap(_open, (None, 0))(words, progress)
    same = words.token[:, None] == words.token
    beams = jnp.arange(count)[:, None]
    twice = jnp.any(jnp.tril(same, -1) & opened[:, None, :], axis=-1)
    listed = (parent[None, None] == beams[..., None]) & (token == words.token[:, None])
    forced = total[:, jnp.clip(words.token, 0, vocab - 1)]
    fresh = opened & ~twice & ~jnp.any(listed, -1) & (words.token < vocab) & jnp.isfinite(forced)
    # Of every candidate: its beam, token, score and bank.
    beam = jnp.concatenate([parent, jnp.broadcast_to(beams, fresh.shape).reshape(-1)])
    new = jnp.concatenate([token, jnp.broadcast_to(words.token, fresh.shape).reshape(-1)])
    score = jnp.concatenate([scores, jnp.where(fresh, forced, -jnp.inf).reshape(-1)])
    before = jax.tree.map(lambda x: x[beam], progress)
    after = jax.vmap(_advance, (None, 0, 0))(words, before, new)
    bank = jnp.where(jnp.isfinite(score), jax.vmap(_bank, (None, 0))(words, after), -1)
    order = jnp.argsort(bank * BANK + score, descending=True, stable=True)
    rank, sorted_ = jnp.arange(len(order)), bank[order]
    begins = jnp.where(sorted_ != jnp.roll(sorted_, 1), rank, 0)
    turn = jnp.where(sorted_ < 0, len(order), rank - lax.cummax(begins))
    index = order[jnp.argsort(turn, stable=True)][:count]
    # Without a next token of a word, the best by score go on.
    index = jnp.where(jnp.any(fresh), index, jnp.arange(count))
    return score[index], beam[index], new[index]

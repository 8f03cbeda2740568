"""Word2Vec (Mikolov et al. 2013): word vectors that predict a word from its neighbours.

skipgram predicts from each neighbour, cbow from the mean of all. The output is logistic: negative
sampling, or hierarchical softmax over a Huffman tree. Params: in [V, D], the word vectors; out
[V or V - 1, D].

Gradients are exact: of a mean of n words each gets one n-th, where word2vec.c and gensim give
each the whole (Irsoy et al. 2021).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic.documents import check_documents

Params = dict[str, Array]
Form = Literal["skipgram", "cbow"]
Output = Literal["negative", "hierarchical"]
BLOCK = 1 << 16  # tokens whose pairs exist at once on the host
STEPS = 64  # batches of one call of the compiled loop


@arguments.checked(negatives=at_least(1))
@dataclass(frozen=True, kw_only=True)
class Word2Vec:
    """Settings of Word2Vec; raises ConfigError naming the field at fault.

    window: most words on either side; each position samples its own width up to it. negatives:
    words sampled in proportion to count ** 0.75; None with hierarchical. sample: words more
    frequent than this share of the text are subsampled; None: none is.
    """

    vocab_size: int
    width: int
    window: int
    form: Form
    output: Output
    negatives: int | None = None
    sample: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 2), ("width", 1), ("window", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if (self.negatives is not None) != (self.output == "negative"):
            raise ConfigError(
                f"negatives={self.negatives} with output={self.output}: a number of at least 1 "
                f"goes with negative, and with nothing else"
            )
        if self.sample is not None and not 0 < self.sample < 1:
            raise ConfigError(f"sample={self.sample} must be between 0 and 1")


class Batch(NamedTuple):
    """Neighbours, padded with -1, and the word to predict."""

    near: Int[Array | np.ndarray, "B C"]
    word: Int[Array | np.ndarray, "B"]


class Tree(NamedTuple):
    """The path to each word: its inner nodes, the turn at each (0 left, 1 right), -1 beyond."""

    points: Int[Array | np.ndarray, "V L"]
    turns: Int[Array | np.ndarray, "V L"]


def init(config: Word2Vec, key: PRNGKeyArray) -> Params:
    """Return fresh params: vectors of uniform draws within 0.5 / width, outputs of zeros."""
    shape = (config.vocab_size, config.width)
    half = 0.5 / config.width
    rows = config.vocab_size - (config.output == "hierarchical")
    return {
        "in": jax.random.uniform(key, shape, minval=-half, maxval=half),
        "out": jnp.zeros((rows, config.width)),
    }


def huffman(counts: Int[np.ndarray, "V"]) -> Tree:
    """Return the Huffman tree of words by their counts: frequent words have short paths."""
    size = len(counts)
    heap = [(int(count), i) for i, count in enumerate(counts)]
    heapq.heapify(heap)
    parent, turn = np.zeros(2 * size - 1, int), np.zeros(2 * size - 1, int)
    for node in range(size, 2 * size - 1):
        (a, left), (b, right) = heapq.heappop(heap), heapq.heappop(heap)
        parent[left] = parent[right] = node
        turn[right] = 1
        heapq.heappush(heap, (a + b, node))
    paths = []
    for word in range(size):
        node, path = word, []
        while node != 2 * size - 2:
            path.append((parent[node] - size, turn[node]))
            node = parent[node]
        paths.append(path[::-1])
    points = np.full((size, max(map(len, paths))), -1, np.int32)
    turns = points.copy()
    for word, path in enumerate(paths):
        points[word, : len(path)], turns[word, : len(path)] = zip(*path, strict=True)
    return Tree(points, turns)


def loss(
    hidden: Float[Array, "B D"],
    out: Float[Array, "B L D"],
    labels: Float[Array, "B L"],
    real: Float[Array, "B L"],
) -> Float[Array, ""]:
    """Return the summed logistic loss; labels are 1 or 0, real is 0 for padding."""
    scores = jnp.einsum("BD,BLD->BL", hidden, out)
    return jnp.sum(real * (jax.nn.softplus(scores) - labels * scores))


def update(
    params: Params,
    batch: Batch,
    targets: Int[Array, "B L"],
    labels: Float[Array, "B L"],
    rate: Any,
) -> tuple[Params, Float[Array, ""]]:
    """Return (params, loss) after one step against the summed gradient of a batch's pairs.

    targets: rows of `out` and the label of each; -1 for padding.
    """
    near, real = jnp.asarray(batch.near), (targets >= 0).astype(jnp.float32)
    has_word = (near >= 0)[..., None]
    rows, outputs = params["in"][near], params["out"][targets]

    def total(rows: Array, outputs: Array) -> Array:
        hidden = jnp.sum(jnp.where(has_word, rows, 0), axis=1) / jnp.maximum(
            has_word.sum(axis=1), 1
        )
        return loss(hidden, outputs, labels, real)

    value, (to_rows, to_outputs) = jax.value_and_grad(total, argnums=(0, 1))(rows, outputs)
    # Rows of padding have gradients of zero, so it does not matter where they are added.
    vectors = params["in"].at[near].add(-rate * to_rows)
    return {"in": vectors, "out": params["out"].at[targets].add(-rate * to_outputs)}, value


def against_noise(
    word: Int[Array, "B"], negatives: Int[Array, "B N"]
) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
    """Return (rows, labels): the word, and its negatives; a negative equal to it becomes -1."""
    others = jnp.where(negatives == word[:, None], -1, negatives)
    targets = jnp.concatenate([word[:, None], others], axis=1)
    return targets, jnp.zeros(targets.shape).at[:, 0].set(1.0)


def along_tree(word: Int[Array, "B"], tree: Tree) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
    """Return (inner nodes, labels): 1 where the path to the word turns left."""
    targets, turns = jnp.asarray(tree.points)[word], jnp.asarray(tree.turns)[word]
    return targets, (turns == 0).astype(jnp.float32)


def train(
    config: Word2Vec,
    tokens: np.ndarray,
    offsets: np.ndarray,
    *,
    passes: int,
    batch: int,
    rate: float,
    seed: int,
) -> tuple[Params, list[float]]:
    """Return (params, mean loss of each pass) learned from documents.

    tokens [N], offsets [documents + 1]; rate: initial learning rate, falling linearly to 1 / 250 of
    it. Gradients of a batch are summed at the same vectors, so keep it small. Raises
    DataError for ids outside the vocabulary, or no two words side by side.
    """
    ids, offsets = check_documents(tokens, offsets, config.vocab_size)
    if len(ids) < 2:
        raise DataError(f"{len(ids)} tokens hold no pair of words; give more text")
    counts = np.bincount(ids, minlength=config.vocab_size)
    key = jax.random.key(seed)
    params, history = init(config, jax.random.fold_in(key, 0)), []
    tree = huffman(counts) if config.output == "hierarchical" else None
    noise = jnp.cumsum(jnp.asarray(counts, jnp.float32) ** 0.75)
    rng = np.random.default_rng(seed)
    for turn in range(passes):
        losses, num_pairs = 0.0, 0
        for share, part in _parts(config, ids, offsets, counts, batch, rng):
            now = rate * max(1 - (turn + share) / passes, 1 / 250)
            key = jax.random.fold_in(key, 1)
            params, value = _steps(config, params, part, tree, noise, now, key)
            losses, num_pairs = losses + float(value), num_pairs + part.word.size
        if not num_pairs:
            raise DataError(
                f"pass {turn + 1} found no two words of a document side by side; give longer "
                f"documents, or raise sample={config.sample}"
            )
        history.append(losses / num_pairs)
    return params, history


@partial(jax.jit, static_argnames="config", donate_argnames="params")
def _steps(config: Word2Vec, params, part: Batch, tree, noise, rate, key):
    """A step for each batch of the part [steps, B, ...]."""

    def one(carry, inputs):
        params, key = carry
        key, draw = jax.random.split(key)
        if tree is not None:
            targets, labels = along_tree(inputs.word, tree)
        else:
            assert config.negatives is not None
            shape = (inputs.word.shape[0], config.negatives)
            position = jax.random.uniform(draw, shape) * noise[-1]
            negatives = jnp.searchsorted(noise, position, side="right").astype(jnp.int32)
            targets, labels = against_noise(inputs.word, negatives)
        params, value = update(params, inputs, targets, labels, rate)
        return (params, key), value

    (params, _), values = lax.scan(one, (params, key), part)
    return params, jnp.sum(values)


def _parts(config: Word2Vec, ids, offsets, counts, batch, rng) -> Iterator[tuple[float, Batch]]:
    """Yield (how much of the pass is done, batches [steps, B, ...]) of all pairs of a text."""
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if config.sample is not None:
        # Kept with the probability of word2vec.c: sqrt(t / f) + t / f.
        ratio = config.sample * len(ids) / counts[ids]
        keep = rng.random(len(ids)) < np.sqrt(ratio) + ratio
        ids, document = ids[keep], document[keep]
    waiting: list[Batch] = []
    for begin in range(0, len(ids), BLOCK):
        waiting.append(pairs(config, ids, document, slice(begin, begin + BLOCK), rng))
        near, word = (np.concatenate(side) for side in zip(*waiting, strict=True))
        last, done = begin + BLOCK >= len(ids), 0
        while len(word) - done >= batch * STEPS or (last and done < len(word)):
            size = min(batch, len(word) - done)
            steps = min(STEPS, (len(word) - done) // size)
            part = slice(done, done + steps * size)
            done += steps * size
            shape = (steps, size)
            yield begin / len(ids), Batch(near[part].reshape(*shape, -1), word[part].reshape(shape))
        waiting = [Batch(near[done:], word[done:])]


def pairs(
    config: Word2Vec, ids: np.ndarray, document: np.ndarray, part: slice, rng: np.random.Generator
) -> Batch:
    """Return shuffled examples of the positions in `part`; neighbours stay within a document."""
    places = np.arange(len(ids))[part]
    reach = rng.integers(1, config.window + 1, len(places))
    moves = [d for d in range(-config.window, config.window + 1) if d]
    near = np.full((len(places), len(moves)), -1, np.int32)
    for column, move in enumerate(moves):
        other = places + move
        inside = (other >= 0) & (other < len(ids)) & (abs(move) <= reach)
        inside[inside] = document[other[inside]] == document[places[inside]]
        near[inside, column] = ids[other[inside]]
    word = ids[places].astype(np.int32)
    if config.form == "skipgram":
        rows, columns = np.nonzero(near >= 0)
        near, word = near[rows, columns][:, None], word[rows]
    else:
        some = (near >= 0).any(axis=1)
        near, word = near[some], word[some]
    order = rng.permutation(len(word))
    return Batch(near[order], word[order])

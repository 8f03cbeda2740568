"""Maximum-entropy models of the next word, conditioned on earlier words, a suffix and a class.

p(w | h) is proportional to exp(bias[w] + the sum of weights[f][row of f in h, w]) over feature
families f (Berger et al. 1996; Rosenfeld 1996): "word1", "word2", ... the words before, "suffix"
the ending of the last one, "class" the class of the document. The mean negative log likelihood
plus l2 / 2 times the squares of the weights is convex: its optimum is one.

Params: bias [V]; weights: family -> [rows, V]; rows: "word" and "suffix" -> [V], the row of each
id, which training leaves alone. The last row of a family of words stands for the begin of a
document, the one before for all words too rare for a row of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic.documents import check_documents, check_rows, is_traced
from jaxgen.models.classic.prompt import consume

Params = dict[str, Any]
Method = Literal["lbfgs", "adagrad"]
NOTHING = -1  # the word before a document's first


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class MaxEnt:
    """Sizes of a maximum-entropy model; raises ConfigError naming the field at fault.

    order: number of previous words used as features. words: rows of the commonest words of each.
    suffixes: number of distinct endings, 0 for none. classes: of documents, 0 for none.
    """

    vocab_size: int
    order: int
    words: int
    suffixes: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            *(("vocab_size", 1), ("order", 1), ("words", 1)),
            *(("suffixes", 0), ("classes", 0)),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")

    def families(self) -> dict[str, int]:
        """Return the rows of each family of features."""
        families = {f"word{n}": self.words + 2 for n in range(1, self.order + 1)}
        if self.suffixes:
            families["suffix"] = self.suffixes + 1
        return families | ({"class": self.classes} if self.classes else {})


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Fit:
    """Optimizer settings.

    lbfgs: `rounds` full-batch steps. adagrad (Duchi et al. 2011): `rounds` epochs with learning
    rate `rate`. batch: positions per batch of logits.
    """

    method: Method
    rounds: int
    l2: float
    batch: int
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1:
            raise ConfigError(
                f"rounds={self.rounds} and batch={self.batch} must both be at least 1"
            )
        if not 0 <= self.l2 < float("inf"):
            raise ConfigError(f"l2={self.l2} must be 0 or more")
        if (self.rate is not None) != (self.method == "adagrad"):
            raise ConfigError(f"rate={self.rate} with method={self.method}: adagrad alone has one")


class Cache(NamedTuple):
    """The previous words of each row, latest first, and the row's class."""

    words: Int[Array, "B K"]
    classes: Int[Array, "B"]


def init(
    config: MaxEnt, tokens: np.ndarray, suffix_of: Int[np.ndarray, "V"] | None = None
) -> Params:
    """Return params with unigram biases of the tokens [N] and zero weights.

    suffix_of: the ending of each id, 0 .. suffixes - 1, as `endings` finds them. Raises
    ConfigError if it is missing or of no use, DataError for tokens that are no ids.
    """
    if (suffix_of is not None) != bool(config.suffixes):
        raise ConfigError(f"suffixes={config.suffixes}: suffix_of is given with them, and only so")
    ids, _ = check_documents(tokens, np.asarray([0, len(tokens)]), config.vocab_size)
    counts = np.bincount(ids, minlength=config.vocab_size)
    common = np.argsort(-counts, kind="stable")[: config.words]
    row = np.full(config.vocab_size, config.words, np.int32)
    row[common] = np.arange(len(common))
    rows = {"word": row}
    if suffix_of is not None:
        if np.min(suffix_of) < 0 or np.max(suffix_of) >= config.suffixes:
            raise ConfigError(f"suffix_of holds {np.max(suffix_of)}; suffixes={config.suffixes}")
        rows["suffix"] = np.asarray(suffix_of, np.int32)
    shapes = config.families().items()
    weights = {name: jnp.zeros((count, config.vocab_size)) for name, count in shapes}
    bias = jnp.log((counts + 1.0) / (counts.sum() + config.vocab_size)).astype(jnp.float32)
    return {"bias": bias, "weights": weights, "rows": rows}


def endings(pieces: list[str], count: int, *, length: int) -> Int[np.ndarray, "V"]:
    """Return the ending of each piece of a vocabulary: the `count` - 1 commonest, or the last."""
    tails = [piece.rstrip()[-length:] for piece in pieces]
    kinds, inverse, number = np.unique(tails, return_inverse=True, return_counts=True)
    order = np.argsort(-number, kind="stable")[: count - 1]
    row = np.full(len(kinds), count - 1, np.int32)
    row[order] = np.arange(len(order))
    return row[inverse]


def train(
    config: MaxEnt,
    params: Params,
    tokens: np.ndarray,
    offsets: np.ndarray,
    fit: Fit,
    *,
    begin: int | None = None,
    classes: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[Params, list[float]]:
    """Return (params, objective before each round) fitted to documents.

    tokens [N], offsets [documents + 1]; begin: the id that begins documents and is no target;
    classes: of each document; seed: of the order of batches. Raises DataError for no tokens,
    ConfigError for classes that are missing or of no use.
    """
    histories, targets = examples(config, tokens, offsets, begin=begin, classes=classes)
    free = {"bias": params["bias"], "weights": params["weights"]}
    fitting = {"lbfgs": _lbfgs, "adagrad": _adagrad}[fit.method]
    batches = _batches(histories, targets, fit.batch)
    free, history = fitting(config, params["rows"], free, batches, fit, seed)
    return {**free, "rows": params["rows"]}, history


def examples(
    config: MaxEnt,
    tokens: np.ndarray,
    offsets: np.ndarray,
    *,
    begin: int | None,
    classes: np.ndarray | None,
) -> tuple[Cache, Int[np.ndarray, "N"]]:
    """Return (features, target id) of every position but the begins."""
    ids, offsets = check_documents(tokens, offsets, config.vocab_size)
    ids = ids.astype(np.int32)
    if (classes is not None) != bool(config.classes):
        raise ConfigError(f"classes={config.classes}: classes= is given with them, and only so")
    words = np.full((len(ids), config.order), NOTHING, np.int32)
    for first, last in pairwise(offsets):
        for k in range(1, min(config.order, last - first - 1) + 1):
            words[first + k : last, k - 1] = ids[first : last - k]
    labels = np.zeros(len(ids), np.int32)
    if classes is not None:
        labels = np.repeat(_checked_classes(config, classes, len(offsets) - 1), np.diff(offsets))
    real = np.ones(len(ids), bool) if begin is None else ids != begin
    if not real.any():
        raise DataError("the documents hold nothing but their begin; give some text")
    return Cache(words[real], labels[real]), ids[real]  # pyright: ignore[reportArgumentType]


def _checked_classes(config: MaxEnt, classes: Any, rows: int) -> Int[np.ndarray, "B"]:
    """Return the class of each row as int32; DataError for another number or unknown ones."""
    classes = np.asarray(classes)
    if classes.shape != (rows,) or not ((classes >= 0) & (classes < config.classes)).all():
        raise DataError(
            f"classes={np.array2string(classes, threshold=8)} must be {rows} whole numbers, each "
            f"below classes={config.classes}"
        )
    return classes.astype(np.int32)


def logits(params: Params, config: MaxEnt, history: Cache) -> Float[Array, "B V"]:
    """Return the log probabilities of each next word, up to a constant of the row."""
    rows, total = params["rows"], params["bias"]
    for n in range(config.order):
        word = history.words[:, n]
        row = jnp.where(word == NOTHING, config.words + 1, jnp.asarray(rows["word"])[word])
        total = total + params["weights"][f"word{n + 1}"][row]
    if config.suffixes:
        word = history.words[:, 0]
        row = jnp.where(word == NOTHING, config.suffixes, jnp.asarray(rows["suffix"])[word])
        total = total + params["weights"]["suffix"][row]
    return total + params["weights"]["class"][history.classes] if config.classes else total


def objective(
    free: Params, rows: Params, config: MaxEnt, batch: Any, l2: float
) -> Float[Array, ""]:
    """Return the mean negative log likelihood of a batch and the penalty of the weights."""
    history, targets, real = batch
    logprobs = jax.nn.log_softmax(logits({**free, "rows": rows}, config, history))
    own = jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0]
    squares = sum(jnp.sum(w * w) for w in free["weights"].values())
    return -jnp.sum(own * real) / jnp.sum(real) + 0.5 * l2 * squares


def _batches(histories: Cache, targets: np.ndarray, size: int) -> Any:
    """Return (history, targets, mask) in batches [N, size, ...]; the last is padded."""
    count = -(-len(targets) // size)
    size = -(-len(targets) // count)

    def shaped(x):
        room = np.zeros((count * size - len(x), *x.shape[1:]), x.dtype)
        return np.concatenate([x, room]).reshape(count, size, *x.shape[1:])

    real = np.ones(len(targets), np.float32)
    return jax.tree.map(shaped, (histories, targets, real))


def _lbfgs(config, rows, free, batches, fit: Fit, seed: int):
    """Full-batch L-BFGS with optax's zoom line search; gradients accumulate over batches."""
    optimizer = optax.lbfgs()
    batches = jax.tree.map(jnp.asarray, batches)
    places = jnp.sum(batches[2])

    def full_objective(free):
        def more(total, batch):
            share = jnp.sum(batch[2]) / places
            return total + share * objective(free, rows, config, batch, 0.0), None

        total, _ = lax.scan(jax.checkpoint(more), jnp.zeros(()), batches)
        squares = sum(jnp.sum(w * w) for w in free["weights"].values())
        return total + 0.5 * fit.l2 * squares

    value_and_grad = optax.value_and_grad_from_state(full_objective)

    @jax.jit
    def run(free):
        def one(carry, _):
            free, state = carry
            value, grad = value_and_grad(free, state=state)
            updates, state = optimizer.update(
                grad, state, free, value=value, grad=grad, value_fn=full_objective
            )
            return (optax.apply_updates(free, updates), state), value

        (free, _), history = lax.scan(one, (free, optimizer.init(free)), None, length=fit.rounds)
        return free, history

    free, history = run(free)
    return free, [float(value) for value in history]


def _adagrad(config, rows, free, batches, fit: Fit, seed: int):
    assert fit.rate is not None
    optimizer = optax.adagrad(fit.rate, initial_accumulator_value=0.0, eps=1e-10)

    @partial(jax.jit, donate_argnums=(0, 1))
    def one(free, state, batch):
        value, grad = jax.value_and_grad(objective)(free, rows, config, batch, fit.l2)
        updates, state = optimizer.update(grad, state, free)
        return optax.apply_updates(free, updates), state, value

    # A copy, because the step donates its arguments.
    free = jax.tree.map(jnp.array, free)
    state, history, rng = optimizer.init(free), [], np.random.default_rng(seed)
    history_, targets, real = batches
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (history_, targets, real))
    for _ in range(fit.rounds):
        order = rng.permutation(len(flat[1])).reshape(targets.shape)
        values = []
        for part in order:
            free, state, value = one(free, state, jax.tree.map(lambda x, p=part: x[p], flat))
            values.append(value)
        history.append(float(np.mean([float(value) for value in values])))
    return free, history


def start(config: MaxEnt, batch: int, classes: Int[Array, "B"] | None = None) -> Cache:
    """Return the decoding cache before the first token; classes: what each row is conditioned on.

    Raises ConfigError for classes that are missing or of no use, DataError for unknown ones.
    """
    if (classes is not None) != bool(config.classes):
        raise ConfigError(f"classes={config.classes}: classes= is given with them, and only so")
    if classes is not None and not is_traced(classes):
        classes = jnp.asarray(_checked_classes(config, classes, batch))
    labels = jnp.zeros(batch, jnp.int32) if classes is None else jnp.asarray(classes, jnp.int32)
    return Cache(jnp.full((batch, config.order), NOTHING, jnp.int32), labels)


def read(tokens: Int[Array, "B"], cache: Cache) -> Cache:
    """Return the cache after one more token of each row."""
    words = jnp.roll(cache.words, 1, axis=1).at[:, 0].set(tokens.astype(jnp.int32))
    return Cache(words, cache.classes)


def step(params: Params, config: MaxEnt) -> Callable[..., tuple[Array, Cache]]:
    """Return the model as a decoding step: (tokens [B], cache) -> (log probs [B, V], cache)."""

    def run(tokens: Any, cache: Cache) -> tuple[Array, Cache]:
        cache = read(tokens, cache)
        return jax.nn.log_softmax(logits(params, config, cache)), cache

    return run


def prefill(
    config: MaxEnt,
    prompt: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    classes: Int[Array, "B"] | None = None,
) -> tuple[Int[Array, "B"], Cache]:
    """Return (first, cache): all of each prompt but its last token read, and that last token."""
    check_rows(prompt, lengths, config.vocab_size)
    return consume(read, start(config, prompt.shape[0], classes), prompt, lengths)

"""Steps that look something up: in documents, in the states of a text, or in the text so far.

Each is a step like any other, so `jaxgen.fused` and the rest of decoding take them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.arguments import above, at_least, between
from jaxgen.config import ModelConfig
from jaxgen.decoding import cache_rows
from jaxgen.decoding.loop import Step
from jaxgen.decoding.per_request import Number, column
from jaxgen.decoding.processors.base import static
from jaxgen.knowledge.memory import NEIGHBOURS, Memory, neighbours
from jaxgen.knowledge.vectors import PROBES
from jaxgen.models import api
from jaxgen.pytree import register_dataclass

HiddenStep = Callable[
    [Int[Array, "B"], Any], tuple[Float[Array, "B V"], Float[Array, "B D"], Any]
]  # as `jaxgen.text.model_steps.StepWithHidden`


@register_dataclass
@dataclass(frozen=True)
class DocumentCache:
    """The cache of `documents_step`: rows of a model's cache, K for each of B requests.

    weights: log-probabilities of the documents [B, K]. last: what each of them made of the last
    token [B, K, V].
    """

    cache: Any
    weights: Any
    last: Any

    def take(self, rows: Int[Array, "R"]) -> DocumentCache:
        """Return the cache whose request i is request `rows[i]`."""
        count = self.weights.shape[1]
        each = (rows[:, None] * count + jnp.arange(count)).reshape(-1)
        cache = cache_rows.take(self.cache, each)
        return DocumentCache(cache, self.weights[rows], self.last[rows])


def document_cache(
    cache: Any, scores: Float[Array | np.ndarray, "B K"], vocab_size: int
) -> DocumentCache:
    """Return the first cache of `documents_step`.

    Args:
        cache: of B * K prompts, the K of a request in a row: each with another document in it.
        scores: how well each document fits its request; its probability is their softmax.
        vocab_size: of the model.
    """
    weights = jax.nn.log_softmax(jnp.asarray(scores, jnp.float32), axis=-1)
    return DocumentCache(cache, weights, jnp.zeros((*weights.shape, vocab_size)))


@arguments.checked
def documents_step(step: Step, marginal: Literal["token", "sequence"]) -> Step:
    """Return the step of RAG (Lewis et al. 2020): probabilities summed over documents.

    Args:
        step: of a model, over B * K rows.
        marginal: "token": every token may come of another document, p(y) is the product over
            tokens of sums; "sequence": of one and the same, p(y) is the sum of products. The
            latter weighs each document by what it has made of the text so far, so that the
            conditional probabilities are those of the sum, with no beam for each document.

    Returns:
        The step of a `document_cache`, from tokens [B] to log-probabilities [B, V].
    """
    return _DocumentsStep(step, marginal == "sequence")


@register_dataclass
@dataclass(frozen=True)
class _DocumentsStep:
    step: Step
    is_sequence: bool = static(False)

    def __call__(self, tokens: Int[Array, "B"], cache: DocumentCache) -> tuple[Array, Any]:
        weights = cache.weights
        if self.is_sequence:
            said = jnp.take_along_axis(cache.last, tokens[:, None, None], axis=2)[..., 0]
            weights = jax.nn.log_softmax(weights + said, axis=-1)
        logits, inner = self.step(jnp.repeat(tokens, weights.shape[1]), cache.cache)
        each = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1).reshape(cache.last.shape)
        mixed = jax.nn.logsumexp(weights[..., None] + each, axis=1)
        return mixed, DocumentCache(inner, weights, each)


@arguments.checked(weight=between(0, 1), temperature=above(0), count=at_least(1))
def knn_step(
    step: HiddenStep,
    memory: Memory,
    weight: Number,
    *,
    temperature: Number,
    count: int = NEIGHBOURS,
    probes: int | None = PROBES,
    hidden: bool = False,
) -> Any:
    """Return the step of kNN-LM (Khandelwal et al. 2020): (1 - weight) p + weight q.

    q gives each token the share exp(-distance / temperature) of those states of the memory nearest
    to the model's after which it came. What the model bans stays banned.

    Args:
        step: of the model that made the memory, with its hidden states.
        memory: as `open_memory` returns it.
        weight: number or [B], from 0 to 1; 0 is off.
        temperature: number or [B], in squared distances.
        count: states that are looked at. Static.
        probes: lists of the memory to look into; None compares all states. Static.
        hidden: return a step with hidden states again, for `cache_step`.
    """
    return _KnnStep(step, memory, weight, temperature, count, probes, hidden)


@register_dataclass
@dataclass(frozen=True)
class _KnnStep:
    step: HiddenStep
    memory: Memory
    weight: Number
    temperature: Number
    count: int = static(NEIGHBOURS)
    probes: int | None = static(PROBES)
    hidden: bool = static(False)

    def __call__(self, tokens: Int[Array, "B"], cache: Any) -> Any:
        logits, state, cache = self.step(tokens, cache)
        query = state.astype(jnp.float32)
        scores, after = neighbours(self.memory, query, self.count, probes=self.probes)
        shares = jax.nn.softmax(scores / column(self.temperature), axis=-1)
        logits = _mixed(logits, _spread(shares, after, logits.shape[-1]), self.weight)
        return (logits, state, cache) if self.hidden else (logits, cache)


@register_dataclass
@dataclass(frozen=True)
class StateCache:
    """The cache of `cache_step`: the model's, and the last M states of each text in a ring.

    states: [B, M, D]. tokens: the one after each [B, M]. count: of states so far [B]. last: the
    newest state, whose token comes next [B, D]; pending: whether there is one [B].
    """

    cache: Any
    states: Any
    tokens: Any
    count: Any
    last: Any
    pending: Any


@arguments.checked(size=at_least(1))
def state_cache(
    cache: Any,
    params: api.Params,
    config: ModelConfig,
    prompt: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"],
    size: int,
) -> StateCache:
    """Return the first cache of `cache_step`, with the states of the prompts in it.

    Args:
        cache: of the model, of these prompts (see `prefill`).
        params, config: of the model.
        prompt: token ids [B, T], padded on the right.
        lengths: number of real tokens in each row [B].
        size: states that are kept of each text at most. Static.
    """
    states = api.apply(params, config, prompt).hidden.astype(jnp.float32)[:, :-1]
    batch, width, _ = states.shape
    pairs = jnp.asarray(lengths, jnp.int32) - 1  # pairs of a state and the token after it
    places = jnp.arange(width)
    # Of those that share a place in the ring, the newest alone is written.
    is_newest = (places < pairs[:, None]) & (places >= pairs[:, None] - size)
    slots = jnp.where(is_newest, places % size, size)
    rows = jnp.arange(batch)[:, None]
    ring = jnp.zeros((batch, size + 1, states.shape[-1])).at[rows, slots].set(states)[:, :size]
    tokens = jnp.zeros((batch, size + 1), jnp.int32).at[rows, slots].set(prompt[:, 1:])[:, :size]
    last, pending = jnp.zeros((batch, states.shape[-1])), jnp.zeros(batch, bool)
    return StateCache(cache, ring, tokens, pairs, last, pending)


@arguments.checked(weight=between(0, 1), flatness=at_least(0))
def cache_step(step: HiddenStep, weight: Number, *, flatness: Number) -> Step:
    """Return the step of a continuous cache (Grave et al. 2017): (1 - weight) p + weight q.

    q gives each token of the text so far the share exp(flatness * h . state) of the states after
    which it came, h being the newest. What the model bans stays banned.

    Args:
        step: of a model, with its hidden states.
        weight: number or [B], from 0 to 1; 0 is off.
        flatness: number or [B], at least 0; 0 counts how often each token came.

    Returns:
        The step of a `state_cache`.
    """
    return _CacheStep(step, weight, flatness)


@register_dataclass
@dataclass(frozen=True)
class _CacheStep:
    step: HiddenStep
    weight: Number
    flatness: Number

    def __call__(self, tokens: Int[Array, "B"], cache: StateCache) -> tuple[Array, Any]:
        cache = _remember(cache, tokens)
        logits, state, inner = self.step(tokens, cache.cache)
        state = state.astype(jnp.float32)
        size = cache.states.shape[1]
        written = jnp.arange(size) < jnp.minimum(cache.count, size)[:, None]
        scores = jnp.einsum("BMD,BD->BM", cache.states, state) * column(self.flatness)
        scores = jnp.where(written, scores, -jnp.inf)
        any_written = cache.count > 0
        shares = jax.nn.softmax(jnp.where(any_written[:, None], scores, 0.0), axis=-1)
        weight = jnp.where(any_written, jnp.asarray(self.weight), 0.0)
        logits = _mixed(logits, _spread(shares, cache.tokens, logits.shape[-1]), weight)
        every = jnp.ones_like(cache.pending)
        return logits, replace(cache, cache=inner, last=state, pending=every)


def _remember(cache: StateCache, tokens: Int[Array, "B"]) -> StateCache:
    """Write the newest state with the token that has come after it, if one is pending."""
    size = cache.states.shape[1]
    here = (jnp.arange(size) == (cache.count % size)[:, None]) & cache.pending[:, None]
    return replace(
        cache,
        states=jnp.where(here[..., None], cache.last[:, None], cache.states),
        tokens=jnp.where(here, tokens[:, None], cache.tokens),
        count=cache.count + cache.pending,
    )


def _spread(
    shares: Float[Array, "B k"], tokens: Int[Array, "B k"], vocab_size: int
) -> Float[Array, "B V"]:
    """Return the sum of the shares of each token of the vocabulary."""
    rows = jnp.arange(len(shares))[:, None]
    return jnp.zeros((len(shares), vocab_size)).at[rows, tokens].add(shares)


def _mixed(logits: Float[Array, "B V"], other: Float[Array, "B V"], weight: Number) -> Array:
    """Return log((1 - weight) p + weight * other), of p as softmax of logits."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    weight = jnp.broadcast_to(column(jnp.asarray(weight, jnp.float32)), logprobs.shape)
    banned = jnp.isneginf(logprobs)
    mixed = jnp.logaddexp(jnp.log1p(-weight) + logprobs, jnp.log(weight * other))
    mixed = jnp.where(weight > 0, mixed, logprobs)
    return jnp.where(banned, -jnp.inf, mixed)

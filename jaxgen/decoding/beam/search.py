"""Beam search in all its kinds, as one compiled loop over any `step`.

One search serves beam search, beam sampling, diverse groups (Vijayakumar et al. 2016) and words
that must appear. Beams of a request never see another request, so results don't depend on the
batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding import cache_rows
from jaxgen.decoding.beam import constraints, hypotheses
from jaxgen.decoding.beam.constraints import Progress, Words
from jaxgen.decoding.beam.hypotheses import Candidates, Hypotheses, gather
from jaxgen.decoding.beam.settings import Search, check
from jaxgen.decoding.chain import NOT_FINITE, Chain, check_chain, initial_history
from jaxgen.decoding.detailed import Decoded
from jaxgen.decoding.history import NO_TOKEN, History, append_token, count_tokens
from jaxgen.decoding.loop import (
    LOOP,
    NO_STOP,
    Count,
    Keys,
    Step,
    Stops,
    request_keys,
    take_step,
)
from jaxgen.decoding.per_request import column
from jaxgen.decoding.stop import Reason, StopStrings, ended_by
from jaxgen.eager import compile_once
from jaxgen.mesh.explicit import auto_inside
from jaxgen.ops.random import gumbel
from jaxgen.varying import while_loop


class _BeamState(NamedTuple):
    """The carry of the loop."""

    position: Array
    token: Array  # [B, K]
    scores: Array  # [B, K]; -inf is no beam
    tokens: Array  # [B, K, length]
    logprobs: Array  # [B, K, length]
    cache: Any
    history: History | None  # [B, K, ...]
    stop_state: Array | None  # [B, K]: of the stop-string automata
    progress: Progress | None  # [B, K, ...]
    finished: Hypotheses
    done: Array  # [B, G]
    failed: Array  # [B]: a Reason of failure, else 0


class _BeamSpec(NamedTuple):
    """The arguments of `beam_search` as arrays, constant during the loop."""

    search: Search
    sample: Chain
    length: int
    keys: Any
    stops: Any
    strings: StopStrings | None
    words: Words | None  # a row for each request
    limit: Any  # [B, 1]
    num_return: int

    @property
    def size(self) -> int:
        """Return the number of beams of a group."""
        return self.search.beams // self.search.groups


@arguments.checked(**LOOP, num_return=at_least(1))
def beam_search(
    step: Step,
    cache: Any,
    first: Int[Array | np.ndarray, "B"],
    key: Keys | None,
    sample: Chain,
    length: int,
    search: Search,
    *,
    num_return: int = 1,
    words: Words | None = None,
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> Decoded:
    """Search for the most probable texts with beams.

    Args:
        step, first, length, stop, strings, limit, prompt, lengths: as in `decode`.
        cache: with one row for each request; `cache_rows.take` says how its rows are reordered.
        key: read only with `do_sample=True`; its draws do not depend on the rest of the batch.
        sample: its processors change the log-probabilities of each step, as in transformers; it
            does not draw.
        search: `beams(...)`.
        num_return: number N of texts of each request, at most the number of beams.
        words: `must_appear(...)`, for beams without groups and sampling.

    Returns:
        Decoded: tokens [B, N, length], the best text first, scores, and log-probabilities after the
        processors.

    Raises:
        ConfigError: for `num_return` above the beams, a missing key or prompt, or words together
            with groups or sampling.

    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), cache)
    >>> args = (count, (), jnp.array([0]), None, jaxgen.chain(), 3, jaxgen.beams(2))
    >>> jaxgen.beam_search(*args).tokens
    Array([[[1, 2, 3]]], dtype=int32)
    """
    check(search, num_return, key, words)
    check_chain(sample, length, beams=search.beams)
    options = {"words": words, "stop": stop, "strings": strings, "limit": limit}
    options |= {"prompt": prompt, "lengths": lengths, "num_return": num_return}
    return _search(step, cache, first, key, sample, length, search, **options)


@compile_once
@auto_inside("first")
def _search(
    step, cache, first, key, sample, length, search, *,
    num_return, words, stop, strings, limit, prompt, lengths,
) -> Decoded:  # fmt: skip
    batch = first.shape[0]
    keys = None if key is None else request_keys(key, batch)
    most = jnp.full(batch, length) if limit is None else jnp.minimum(jnp.asarray(limit), length)
    stops = jnp.atleast_2d(jnp.asarray(NO_STOP if stop is None else stop, jnp.int32))
    rows = None if words is None else words.rows(batch)
    most = jnp.broadcast_to(most, batch)[:, None]
    spec = _BeamSpec(search, sample, length, keys, stops, strings, rows, most, num_return)
    state = _begin(spec, cache, first, prompt, lengths)
    going = lambda state: (state.position < length) & ~jnp.all(state.done)  # noqa: E731
    return _result(spec, while_loop(going, lambda state: _advance(spec, step, state), state))


def _begin(spec: _BeamSpec, cache, first, prompt, lengths) -> _BeamState:
    batch, count, length = first.shape[0], spec.search.beams, spec.length
    # One beam of a group is alive: the others would only repeat it.
    scores = jnp.where(jnp.arange(count) % spec.size == 0, jnp.float32(0), -jnp.inf)
    history = initial_history(spec.sample, batch, length, prompt, lengths)
    stop_state = None if spec.strings is None else spec.strings.states(batch)
    progress = None if spec.words is None else spec.words.begin(batch, prompt, lengths)

    def repeat(tree):
        return jax.tree.map(lambda x: jnp.repeat(x[:, None], count, axis=1), tree)

    return _BeamState(
        jnp.zeros((), jnp.int32),
        repeat(jnp.asarray(first, jnp.int32)),
        jnp.broadcast_to(scores, (batch, count)),
        jnp.full((batch, count, length), NO_TOKEN, jnp.int32),
        jnp.zeros((batch, count, length), jnp.float32),
        cache_rows.repeat(cache, batch, count),
        *(repeat(history), repeat(stop_state), repeat(progress)),
        hypotheses.empty(batch, count, length),
        jnp.broadcast_to(spec.limit < 1, (batch, spec.search.groups)),
        jnp.zeros(batch, jnp.int32),
    )


def _advance(spec: _BeamSpec, step: Step, state: _BeamState) -> _BeamState:
    """Return the state after one more token of every beam."""
    size, (batch, count) = spec.size, state.token.shape
    logits, cache = take_step(step, jnp.maximum(state.token, 0).reshape(-1), state.cache)
    logits = logits.astype(jnp.float32).reshape(batch, count, -1)
    alive = jnp.isfinite(state.scores)
    logprobs, bad = _log_softmax(logits)
    not_finite = jnp.any(bad & alive & ~jnp.repeat(state.done, size, axis=1), axis=-1)
    finished, done, groups = state.finished, state.done, []
    for group in range(spec.search.groups):
        here = slice(group * size, (group + 1) * size)
        scores = _penalize_similarity(spec, logprobs[:, here], groups, state.done)
        history = jax.tree.map(lambda x, at=here: x[:, at], state.history)
        # Beam by beam, so that settings [B] of the processors meet rows [B, V].
        scores = jax.vmap(spec.sample.process, in_axes=1, out_axes=1)(scores, history)
        chosen, mine, over = _extend_group(spec, state, scores, group)
        finished = jax.tree.map(lambda x, new, at=here: x.at[:, at].set(new), finished, mine)
        done = done.at[:, group].set(over)
        groups.append(chosen)
    chosen = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *groups)
    failed = jnp.where(not_finite & ~jnp.all(state.done, axis=1), Reason.NOT_FINITE, state.failed)
    dead = ~jnp.any(jnp.isfinite(chosen.scores), 1)
    none = dead & ~jnp.any(jnp.isfinite(finished.scores), 1)
    failed = jnp.where(none & (failed == 0), Reason.BANNED, failed).astype(jnp.int32)
    over = dead | (state.position + 1 >= spec.limit[:, 0])
    done = done | (failed > 0)[:, None] | over[:, None]
    state = _reorder(spec, state, chosen, cache)
    return state._replace(finished=finished, done=done, failed=failed)


def _log_softmax(logits: Float[Array, "B K V"]) -> tuple[Float[Array, "B K V"], Bool[Array, "B K"]]:
    """Return (log-probabilities, rows that have none), 0 in those so that no processor sees NaN.

    The norm alone tells, where a look at each logit would take longer than the softmax.
    """
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    norm = jnp.log(jnp.sum(jnp.exp(below), axis=-1, keepdims=True))
    bad = ~jnp.isfinite(norm)
    return jnp.where(bad, 0.0, below - norm), bad[..., 0]


class _Continuations(NamedTuple):
    """Beams with one more token, the best first [B, C]."""

    scores: Array  # sum of log-probabilities of the whole text
    parent: Array  # index of the beam, counted over all groups
    token: Array
    logprob: Array  # of the token
    stop_state: Array | None


def _extend_group(
    spec: _BeamSpec, state: _BeamState, scores: Float[Array, "B K V"], group: int
) -> tuple[_Continuations, Hypotheses, Bool[Array, "B"]]:
    """Return a group's beams after one more token, its finished texts, and whether it is done."""
    size, search, before = spec.size, spec.search, state.progress
    here = slice(group * size, (group + 1) * size)
    total = scores + state.scores[:, here, None]
    best = _best_continuations(spec, state, scores, total, here)
    reason = ended_by(best.stop_state, jnp.any(best.token[..., None] == spec.stops[:, None], -1))
    ends = reason != Reason.LENGTH
    open_scores, index = lax.top_k(jnp.where(ends, -jnp.inf, best.scores), size)
    chosen = gather(best, index)._replace(scores=open_scores)
    if spec.words is not None and before is not None:
        picks = (chosen.scores, chosen.parent, chosen.token)
        picks = constraints.choose(spec.words, before, total, *picks)
        chosen = _continuations(spec, state, scores, here, *picks)
    num_generated, limit = state.position + 1, spec.limit[:, 0]
    finished = jax.tree.map(lambda x: x[:, here], state.finished)
    done = state.done[:, group]
    # Only what is among the best `size` may end there.
    ranked = gather(best, jnp.broadcast_to(jnp.arange(size), ends[:, :size].shape))
    texts = _texts(spec, state, ranked, reason[:, :size])
    # A stop token adds nothing to the words.
    constraints_met = texts.constraints_met
    if before is not None:
        earlier = constraints.constraints_met(gather(before, ranked.parent))
        constraints_met = jnp.where(texts.reason == Reason.STOP, earlier, constraints_met)
    which = ends[:, :size] & constraints_met & ~done[:, None]
    texts = texts._replace(constraints_met=constraints_met)
    finished = hypotheses.merge(search, finished, texts, which, num_generated)
    rule = (num_generated, limit)
    legacy = search.groups > 1 or before is not None
    if legacy:
        # As transformers' scorer of groups and of words does: the best candidate counts even if
        # it ends, and open beams don't join a group that is done.
        done = done | hypotheses.is_done(search, finished, best.scores[:, 0], *rule)
    over = (num_generated >= limit) & ~done
    texts = _texts(spec, state, chosen, jnp.full_like(chosen.token, Reason.LENGTH))
    enough = jnp.sum(texts.constraints_met, axis=1, keepdims=True) >= spec.num_return
    which = over[:, None] & (texts.constraints_met | ~enough)
    finished = hypotheses.merge(search, finished, texts, which, num_generated)
    if not legacy:
        done = done | hypotheses.is_done(search, finished, chosen.scores[:, 0], *rule)
    return chosen, finished, done


def _best_continuations(spec: _BeamSpec, state: _BeamState, scores, total, here: slice):
    batch, size, vocab = scores.shape
    # So many that enough go on even if every beam's best tokens are all its stop ids.
    width = min(max(2, 1 + spec.stops.shape[-1]) * size, size * vocab)
    best, index = _top_candidates(spec, total.reshape(batch, -1), width, state.position)
    parent, token = index // vocab + here.start, (index % vocab).astype(jnp.int32)
    return _continuations(spec, state, scores, here, best, parent, token)


def _continuations(spec: _BeamSpec, state: _BeamState, scores, here: slice, best, parent, token):
    batch, _, vocab = scores.shape
    index = (parent - here.start) * vocab + token
    logprob = jnp.take_along_axis(scores.reshape(batch, -1), index, axis=1)
    stop_state = None
    if spec.strings is not None and state.stop_state is not None:
        before = gather(state.stop_state, parent)
        stop_state = jax.vmap(spec.strings.advance, (1, 1), 1)(before, token)
    return _Continuations(best, parent, token, logprob, stop_state)


def _texts(
    spec: _BeamSpec, state: _BeamState, new: _Continuations, reason: Int[Array, "B C"]
) -> Candidates:
    """Return the whole texts of continuations."""
    now = jnp.arange(spec.length) == state.position
    constraints_met = jnp.ones(reason.shape, bool)
    progress = _progress(spec, state, new)
    if progress is not None:
        constraints_met = constraints.constraints_met(progress)
    return Candidates(
        jnp.where(now, new.token[..., None], gather(state.tokens, new.parent)),
        new.scores,
        reason,
        jnp.where(now, new.logprob[..., None], gather(state.logprobs, new.parent)),
        constraints_met,
    )


def _progress(spec: _BeamSpec, state: _BeamState, new: _Continuations) -> Progress | None:
    """Return the progress of the words of continuations; None without words."""
    if spec.words is None or state.progress is None:
        return None
    return constraints.advance(spec.words, gather(state.progress, new.parent), new.token)


def _top_candidates(spec: _BeamSpec, total: Float[Array, "B C"], width: int, position: Array):
    """Return (scores, indices) of the candidates of each request, the best first."""
    if not spec.search.do_sample:
        return lax.top_k(total, width)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, position))(spec.keys)
    # The largest of Gumbel-perturbed logits are a draw without replacement (Kool et al. 2019).
    noise = gumbel(keys, total.shape[1])
    index = lax.top_k(total + noise, width)[1]
    order = jnp.argsort(-jnp.take_along_axis(total, index, axis=1), axis=1, stable=True)
    index = jnp.take_along_axis(index, order, axis=1)
    return jnp.take_along_axis(total, index, axis=1), index


def _penalize_similarity(
    spec: _BeamSpec, scores: Float[Array, "B K V"], earlier: list[_Continuations], done: Array
) -> Float[Array, "B K V"]:
    """Subtract the diversity penalty for every beam of earlier groups that chose the same token."""
    if not earlier:
        return scores
    tokens = jnp.concatenate([group.token for group in earlier], axis=1)
    counted = jnp.repeat(~done[:, : len(earlier)], spec.size, axis=1)
    count = count_tokens(tokens, counted, scores.shape[-1])
    return scores - (column(spec.search.diversity) * count)[:, None]


def _reorder(spec: _BeamSpec, state: _BeamState, new: _Continuations, cache: Any) -> _BeamState:
    batch, count = new.token.shape
    parents = (jnp.arange(batch)[:, None] * count + new.parent).reshape(-1)
    texts = _texts(spec, state, new, jnp.zeros_like(new.token))
    history = state.history
    if history is not None:
        append = jax.vmap(lambda one, token: append_token(spec.sample, one, token), (1, 1), 1)
        history = append(gather(history, new.parent), new.token)
    return state._replace(
        position=state.position + 1,
        token=new.token,
        scores=new.scores,
        tokens=texts.tokens,
        logprobs=texts.logprobs,
        cache=cache_rows.take(cache, parents),
        history=history,
        stop_state=new.stop_state,
        progress=_progress(spec, state, new),
    )


def _result(spec: _BeamSpec, state: _BeamState) -> Decoded:
    scores, index = lax.top_k(state.finished.scores, spec.num_return)
    best = gather(state.finished, index)
    failed = (state.failed > 0)[:, None]
    num_generated = jnp.where(failed, 0, best.num_generated)
    valid = jnp.arange(spec.length)[None, None] < num_generated[..., None]
    last = jnp.take_along_axis(best.tokens, jnp.maximum(num_generated - 1, 0)[..., None], axis=2)
    return Decoded(
        jnp.where(failed[..., None], NOT_FINITE, jnp.where(valid, best.tokens, last)),
        num_generated,
        jnp.where(failed, state.failed[:, None], best.reason),
        jnp.where(valid, best.logprobs, 0.0),
        scores=jnp.where(failed, -jnp.inf, scores),
        constraints_met=best.constraints_met & ~failed,
    )

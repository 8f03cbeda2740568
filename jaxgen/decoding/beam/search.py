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
from jaxgen.decoding.beam.hypotheses import Ended, Texts, gathered
from jaxgen.decoding.beam.settings import Search, check
from jaxgen.decoding.chain import NOT_FINITE, Chain, check_chain, initial_history
from jaxgen.decoding.detailed import Decoded
from jaxgen.decoding.history import NO_TOKEN, History, append_token, count_tokens
from jaxgen.decoding.loop import LOOP, NO_STOP, Count, Keys, Step, Stops, request_keys
from jaxgen.decoding.per_request import column
from jaxgen.decoding.stop import Reason, StopStrings, ended_by
from jaxgen.eager import compile_once
from jaxgen.mesh.explicit import auto_inside
from jaxgen.ops.random import gumbel
from jaxgen.varying import while_loop


class _Beams(NamedTuple):
    """What the loop carries."""

    place: Array
    token: Array  # [B, K]
    scores: Array  # [B, K]; -inf is no beam
    tokens: Array  # [B, K, length]
    logprobs: Array  # [B, K, length]
    cache: Any
    history: History | None  # [B, K, ...]
    stop_state: Array | None  # [B, K]: of the stop-string automata
    progress: Progress | None  # [B, K, ...]
    ended: Ended
    done: Array  # [B, G]
    failed: Array  # [B]: a Reason of failure, else 0


class _Task(NamedTuple):
    search: Search
    sample: Chain
    length: int
    keys: Any
    stops: Any
    strings: StopStrings | None
    words: Words | None  # a row a request
    limit: Any  # [B, 1]
    num_return: int

    @property
    def size(self) -> int:
        """Return the beams of a group."""
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
    """Return the `num_return` best texts of each request, their `logprobs` after the processors.

    sample: its processors change the log-probabilities of each step, as in transformers; its draw
      is not used. key: only `do_sample=True` reads it; its draws are as independent of the batch as
      those of `decode`. words: `must_appear`, for plain beams only. The cache comes with one row a
      request; see `cache_rows.take` for how a cache is reordered. The other arguments are those of
      `decode`.
    Raises ConfigError if `num_return` exceeds the beams, a key or prompt is missing, or words meet
    groups or draws.
    """
    check(search, num_return, key, words)
    check_chain(sample, length, beams=search.beams)
    given = {"words": words, "stop": stop, "strings": strings, "limit": limit}
    given |= {"prompt": prompt, "lengths": lengths, "num_return": num_return}
    return _search(step, cache, first, key, sample, length, search, **given)


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
    rowed = None if words is None else words.rows(batch)
    most = jnp.broadcast_to(most, batch)[:, None]
    task = _Task(search, sample, length, keys, stops, strings, rowed, most, num_return)
    begun = _begin(task, cache, first, prompt, lengths)
    state = while_loop(
        lambda state: (state.place < length) & ~jnp.all(state.done), _body(task, step), begun
    )
    return _result(task, state)


def _begin(task: _Task, cache, first, prompt, lengths) -> _Beams:
    batch, count, length = first.shape[0], task.search.beams, task.length
    # One beam of a group is alive: the others would only repeat it.
    scores = jnp.where(jnp.arange(count) % task.size == 0, jnp.float32(0), -jnp.inf)
    history = initial_history(task.sample, batch, length, prompt, lengths)
    stop_state = None if task.strings is None else task.strings.states(batch)
    words = task.words
    progress = None if words is None else words.begin(batch, prompt, lengths)

    def spread(state):
        return jax.tree.map(lambda x: jnp.repeat(x[:, None], count, axis=1), state)

    return _Beams(
        jnp.zeros((), jnp.int32),
        spread(jnp.asarray(first, jnp.int32)),
        jnp.broadcast_to(scores, (batch, count)),
        jnp.full((batch, count, length), NO_TOKEN, jnp.int32),
        jnp.zeros((batch, count, length), jnp.float32),
        cache_rows.repeat(cache, batch, count),
        *(spread(history), spread(stop_state), spread(progress)),
        hypotheses.none(batch, count, length),
        jnp.broadcast_to(task.limit < 1, (batch, task.search.groups)),
        jnp.zeros(batch, jnp.int32),
    )


def _body(task: _Task, step: Step):
    groups, size = task.search.groups, task.size

    def body(state: _Beams) -> _Beams:
        batch, count = state.token.shape
        logits, cache = step(jnp.maximum(state.token, 0).reshape(-1), state.cache)
        logits = logits.astype(jnp.float32).reshape(batch, count, -1)
        alive = jnp.isfinite(state.scores)
        plain, bad = _logprobs(logits)
        not_finite = jnp.any(bad & alive & ~jnp.repeat(state.done, size, axis=1), axis=-1)
        ended, done, parts = state.ended, state.done, []
        for group in range(groups):
            here = slice(group * size, (group + 1) * size)
            scores = _apart(task, plain[:, here], parts, state.done)
            scores = _processed(task.sample, scores, _of(state.history, here))
            chosen, mine, over = _grown(task, state, scores, group)
            ended = jax.tree.map(lambda x, new, at=here: x.at[:, at].set(new), ended, mine)
            done = done.at[:, group].set(over)
            parts.append(chosen)
        chosen = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
        failed = jnp.where(
            not_finite & ~jnp.all(state.done, axis=1), Reason.NOT_FINITE, state.failed
        )
        dead = ~jnp.any(jnp.isfinite(chosen.scores), 1)
        none = dead & ~jnp.any(jnp.isfinite(ended.scores), 1)
        failed = jnp.where(none & (failed == 0), Reason.BANNED, failed).astype(jnp.int32)
        done = (
            done | (failed > 0)[:, None] | (dead | (state.place + 1 >= task.limit[:, 0]))[:, None]
        )
        return _reordered(task, state, chosen, cache)._replace(
            ended=ended, done=done, failed=failed
        )

    return body


def _logprobs(logits: Float[Array, "B K V"]) -> tuple[Float[Array, "B K V"], Bool[Array, "B K"]]:
    """Return (log-probabilities, which rows have none): of those not even a processor sees NaN.

    One number a row tells it, where looking at each logit takes longer than the softmax.
    """
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    norm = jnp.log(jnp.sum(jnp.exp(below), axis=-1, keepdims=True))
    bad = ~jnp.isfinite(norm)
    return jnp.where(bad, 0.0, below - norm), bad[..., 0]


class _Picks(NamedTuple):
    """Continuations of beams, the best first [B, C]; scores are of whole texts."""

    scores: Array
    parent: Array  # the beam, counted over all groups
    token: Array
    single: Array  # the log-probability of the token
    stop_state: Array | None

    def at(self, index: Int[Array, "B M"]) -> _Picks:
        """Return those at `index`."""
        return jax.tree.map(lambda x: gathered(x, index), self)


def _grown(
    task: _Task, state: _Beams, scores: Float[Array, "B K V"], group: int
) -> tuple[_Picks, Ended, Bool[Array, "B"]]:
    """Return a group's beams after one more token, its ended texts, and whether it is done."""
    size, search = task.size, task.search
    here = slice(group * size, (group + 1) * size)
    total = scores + state.scores[:, here, None]
    found = _candidates(task, state, scores, total, here)
    stopped, reason = _stopped(task, found)
    going = lax.top_k(jnp.where(stopped, -jnp.inf, found.scores), size)
    chosen = found.at(going[1])._replace(scores=going[0])
    before = state.progress
    if task.words is not None and before is not None:
        picks = (chosen.scores, chosen.parent, chosen.token)
        picked = constraints.chosen(task.words, before, total, *picks)
        chosen = _picks(task, state, scores, here, *picked)
    num_generated, limit = state.place + 1, task.limit[:, 0]
    ended = jax.tree.map(lambda x: x[:, here], state.ended)
    closed = state.done[:, group]
    # Only what is among the best `size` may end there.
    ranked = found.at(jnp.broadcast_to(jnp.arange(size), stopped[:, :size].shape))
    texts = _texts(task, state, ranked, reason[:, :size])
    # A stop token brings no word in: what counts is what was there before.
    constraints_met = texts.constraints_met
    if before is not None:
        earlier = constraints.constraints_met(_chosen_of(before, ranked.parent))
        constraints_met = jnp.where(texts.reason == Reason.STOP, earlier, constraints_met)
    which = stopped[:, :size] & constraints_met & ~closed[:, None]
    ended = hypotheses.merged(
        search, ended, texts._replace(constraints_met=constraints_met), which, num_generated
    )
    legacy = search.groups > 1 or before is not None
    if legacy:
        # As transformers' scorer of groups and of words does: the best candidate counts even if
        # it ends, and open beams don't join a group that is done.
        closed = closed | hypotheses.satisfied(
            search, ended, found.scores[:, 0], num_generated, limit
        )
    over = (num_generated >= limit) & ~closed
    texts = _texts(task, state, chosen, jnp.full_like(chosen.token, Reason.LENGTH))
    enough = jnp.sum(texts.constraints_met, axis=1, keepdims=True) >= task.num_return
    open_ = over[:, None] & (texts.constraints_met | ~enough)
    ended = hypotheses.merged(search, ended, texts, open_, num_generated)
    if not legacy:
        closed = closed | hypotheses.satisfied(
            search, ended, chosen.scores[:, 0], num_generated, limit
        )
    return chosen, ended, closed


def _candidates(task: _Task, state: _Beams, scores, total, here: slice) -> _Picks:
    batch, size, vocab = scores.shape
    # So many that enough go on even if every beam's likeliest tokens are all its stop ids.
    width = min(max(2, 1 + task.stops.shape[-1]) * size, size * vocab)
    best, index = _picked(task, total.reshape(batch, -1), width, state.place)
    parent, token = index // vocab + here.start, (index % vocab).astype(jnp.int32)
    return _picks(task, state, scores, here, best, parent, token)


def _picks(task: _Task, state: _Beams, scores, here: slice, best, parent, token) -> _Picks:
    batch, _, vocab = scores.shape
    index = (parent - here.start) * vocab + token
    single = jnp.take_along_axis(scores.reshape(batch, -1), index, axis=1)
    stop_state = None
    if task.strings is not None and state.stop_state is not None:
        before = gathered(state.stop_state, parent)
        stop_state = jax.vmap(task.strings.advance, (1, 1), 1)(before, token)
    return _Picks(best, parent, token, single, stop_state)


def _stopped(task: _Task, found: _Picks) -> tuple[Bool[Array, "B C"], Int[Array, "B C"]]:
    """Which continuations end their text, and why."""
    ids = jnp.any(found.token[..., None] == task.stops[:, None], axis=-1)
    reason = ended_by(found.stop_state, ids)
    return reason != Reason.LENGTH, reason


def _texts(task: _Task, state: _Beams, picks: _Picks, reason: Int[Array, "B C"]) -> Texts:
    """The whole texts of continuations."""
    now = jnp.arange(task.length) == state.place
    constraints_met = jnp.ones(reason.shape, bool)
    if task.words is not None and state.progress is not None:
        before = _chosen_of(state.progress, picks.parent)
        constraints_met = constraints.constraints_met(
            constraints.advance(task.words, before, picks.token)
        )
    return Texts(
        jnp.where(now, picks.token[..., None], gathered(state.tokens, picks.parent)),
        picks.scores,
        reason,
        jnp.where(now, picks.single[..., None], gathered(state.logprobs, picks.parent)),
        constraints_met,
    )


def _chosen_of(state: Any, parent: Int[Array, "B C"]) -> Any:
    return jax.tree.map(lambda x: gathered(x, parent), state)


def _picked(task: _Task, total: Float[Array, "B C"], width: int, place: Array):
    """The candidates of each request, the best first."""
    if not task.search.do_sample:
        return lax.top_k(total, width)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(task.keys)
    # The largest of Gumbel-perturbed logits are a draw without replacement (Kool et al. 2019).
    noise = gumbel(keys, total.shape[1])
    index = lax.top_k(total + noise, width)[1]
    order = jnp.argsort(-jnp.take_along_axis(total, index, axis=1), axis=1, stable=True)
    index = jnp.take_along_axis(index, order, axis=1)
    return jnp.take_along_axis(total, index, axis=1), index


def _apart(
    task: _Task, scores: Float[Array, "B K V"], earlier: list[_Picks], done: Bool[Array, "B G"]
) -> Float[Array, "B K V"]:
    """Scores less the diversity for every beam of earlier groups that chose the same token."""
    if not earlier:
        return scores
    tokens = jnp.concatenate([group.token for group in earlier], axis=1)
    counted = jnp.repeat(~done[:, : len(earlier)], task.size, axis=1)
    chosen = count_tokens(tokens, counted, scores.shape[-1])
    return scores - (column(task.search.diversity) * chosen)[:, None]


def _processed(sample: Chain, scores: Float[Array, "B K V"], history: History | None) -> Array:
    # Beam by beam, so that settings [B] of the processors meet rows [B, V].
    return jax.vmap(sample.process, in_axes=1, out_axes=1)(scores, history)


def _of(history: History | None, here: slice) -> History | None:
    return None if history is None else jax.tree.map(lambda x: x[:, here], history)


def _reordered(task: _Task, state: _Beams, chosen: _Picks, cache: Any) -> _Beams:
    batch, count = chosen.token.shape
    parents = (jnp.arange(batch)[:, None] * count + chosen.parent).reshape(-1)
    texts = _texts(task, state, chosen, jnp.zeros_like(chosen.token))
    history, progress = state.history, state.progress
    if history is not None:
        history = _chosen_of(history, chosen.parent)
        history = jax.vmap(lambda one, new: append_token(task.sample, one, new), (1, 1), 1)(
            history, chosen.token
        )
    if task.words is not None and progress is not None:
        before = _chosen_of(progress, chosen.parent)
        progress = constraints.advance(task.words, before, chosen.token)
    return state._replace(
        place=state.place + 1,
        token=chosen.token,
        scores=chosen.scores,
        tokens=texts.tokens,
        logprobs=texts.logprobs,
        cache=cache_rows.take(cache, parents),
        history=history,
        stop_state=chosen.stop_state,
        progress=progress,
    )


def _result(task: _Task, state: _Beams) -> Decoded:
    scores, index = lax.top_k(state.ended.scores, task.num_return)
    best = jax.tree.map(lambda x: gathered(x, index), state.ended)
    failed = (state.failed > 0)[:, None]
    num_generated = jnp.where(failed, 0, best.num_generated)
    places = jnp.arange(task.length)[None, None]
    last = jnp.take_along_axis(best.tokens, jnp.maximum(num_generated - 1, 0)[..., None], axis=2)
    tokens = jnp.where(places < num_generated[..., None], best.tokens, last)
    tokens = jnp.where(failed[..., None], NOT_FINITE, tokens)
    scores = jnp.where(failed, -jnp.inf, scores)
    logprobs = jnp.where(places < num_generated[..., None], best.logprobs, 0.0)
    reason = jnp.where(failed, state.failed[:, None], best.reason)
    met = best.constraints_met & ~failed
    return Decoded(tokens, num_generated, reason, logprobs, scores=scores, constraints_met=met)

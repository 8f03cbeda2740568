"""Beam search in all its kinds, as one compiled loop over any `step`.

One search serves beam search, beam sampling and diverse groups (Vijayakumar et al. 2016). Beams of
a request never see another request, so results don't depend on the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen.decoding import past as pasts
from jaxgen.decoding import rows
from jaxgen.decoding.chain import NOT_FINITE, Chain, missing
from jaxgen.decoding.detail import Reason
from jaxgen.decoding.loop import NO_STOP, Count, Keys, Step, Stops, request_keys
from jaxgen.decoding.past import NO_TOKEN, Past
from jaxgen.decoding.search import RULES, Search
from jaxgen.decoding.setting import column
from jaxgen.errors import ConfigError


class Found(NamedTuple):
    """Texts of each request, the best first; past its end a text repeats its last token."""

    tokens: Int[Array, "B N length"]
    scores: Float[Array, "B N"]  # sum of log-probabilities / made^length_penalty; -inf: no text
    made: Int[Array, "B N"]
    reason: Int[Array, "B N"]  # a Reason
    logprobs: Float[Array, "B N length"]  # of each token, after the processors


class _Ended(NamedTuple):
    """The best texts that have ended, the best first within their group [B, K, ...]."""

    tokens: Array
    scores: Array
    made: Array
    reason: Array
    logprobs: Array


class _Beams(NamedTuple):
    """What the loop carries."""

    place: Array
    token: Array  # [B, K]
    scores: Array  # [B, K]; -inf is no beam
    tokens: Array  # [B, K, length]
    logprobs: Array  # [B, K, length]
    cache: Any
    past: Past | None  # [B, K, ...]
    ended: _Ended
    done: Array  # [B, G]
    sick: Array  # [B]: a Reason of failure, else 0


class _Task(NamedTuple):
    search: Search
    sample: Chain
    length: int
    keys: Any
    stops: Any
    limit: Any  # [B, 1]

    @property
    def size(self) -> int:
        """Return the beams of a group."""
        return self.search.beams // self.search.groups


def beam_search(
    step: Step,
    cache: Any,
    first: Int[Array, "B"],
    key: Keys | None,
    sample: Chain,
    length: int,
    search: Search,
    *,
    returned: int = 1,
    stop: Stops | None = None,
    limit: Count | None = None,
    prompt: Int[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> Found:
    """Return the `returned` best texts of each request.

    sample: its processors change the log-probabilities of each step, as in transformers; its draw
      is not used. key: only `pick="draw"` reads it; its draws are as independent of the batch as
      those of `decode`. The cache comes with one row a request; see `rows.take` for how a cache is
      reordered. The other arguments are those of `decode`.
    Raises ConfigError if `returned` exceeds the beams, or a key or prompt is missing.
    """
    if not 1 <= returned <= search.beams:
        raise ConfigError(f"returned={returned} must be from 1 to beams={search.beams}")
    if search.pick == "draw" and key is None:
        raise ConfigError("pick='draw' needs key=; give jax.random.key(seed)")
    batch = first.shape[0]
    keys = None if key is None else request_keys(key, batch)
    most = jnp.full(batch, length) if limit is None else jnp.minimum(jnp.asarray(limit), length)
    stops = jnp.atleast_2d(jnp.asarray(NO_STOP if stop is None else stop))
    task = _Task(search, sample, length, keys, stops, jnp.broadcast_to(most, batch)[:, None])
    begun = _begin(task, cache, first, prompt, lengths)
    run = lax.while_loop(
        lambda run: (run.place < length) & ~jnp.all(run.done), _body(task, step), begun
    )
    return _found(task, run, returned)


def _begin(task: _Task, cache, first, prompt, lengths) -> _Beams:
    batch, count, length = first.shape[0], task.search.beams, task.length
    # One beam of a group is alive: the others would only repeat it.
    scores = jnp.where(jnp.arange(count) % task.size == 0, 0.0, -jnp.inf)
    blank = jnp.full((batch, count, length), NO_TOKEN, jnp.int32)
    none = jnp.zeros((batch, count, length))
    ended = _Ended(
        blank,
        jnp.full((batch, count), -jnp.inf),
        jnp.zeros((batch, count), jnp.int32),
        jnp.zeros((batch, count), jnp.int32),
        none,
    )
    past = _past(task, batch, prompt, lengths)
    spread = jnp.repeat(first[:, None], count, axis=1)
    return _Beams(
        jnp.zeros((), jnp.int32),
        spread,
        jnp.broadcast_to(scores, (batch, count)),
        blank,
        none,
        rows.repeat(cache, batch, count),
        None if past is None else jax.tree.map(lambda x: jnp.repeat(x[:, None], count, 1), past),
        ended,
        jnp.broadcast_to(task.limit < 1, (batch, task.search.groups)),
        jnp.zeros(batch, jnp.int32),
    )


def _past(task: _Task, batch: int, prompt, lengths) -> Past | None:
    needs = pasts.needs(task.sample)
    if needs == "nothing":
        return None
    made = jnp.zeros(batch, jnp.int32)
    if needs == "made":
        return Past(made)
    if prompt is None:
        raise ConfigError(missing(task.sample))
    room = jnp.full((batch, task.length), NO_TOKEN, jnp.int32)
    known = jnp.full(batch, prompt.shape[1]) if lengths is None else jnp.asarray(lengths)
    tokens = jnp.concatenate([jnp.asarray(prompt, jnp.int32), room], axis=1)
    return pasts.begin(task.sample, Past(made, tokens, known.astype(jnp.int32)))


def _body(task: _Task, step: Step):
    groups, size = task.search.groups, task.size

    def body(run: _Beams) -> _Beams:
        batch, count = run.token.shape
        logits, cache = step(jnp.maximum(run.token, 0).reshape(-1), run.cache)
        logits = logits.astype(jnp.float32).reshape(batch, count, -1)
        alive = jnp.isfinite(run.scores)
        # A row without a finite number has no log-probabilities: not even a processor may see it.
        bad = jnp.any(jnp.isnan(logits), -1) | ~jnp.any(jnp.isfinite(logits), -1)
        sick = jnp.any(bad & alive & ~jnp.repeat(run.done, size, axis=1), axis=-1)
        plain = jax.nn.log_softmax(jnp.where(bad[..., None], 0.0, logits), axis=-1)
        ended, done, parts = run.ended, run.done, []
        for group in range(groups):
            here = slice(group * size, (group + 1) * size)
            scores = _apart(task, plain[:, here], parts, run.done)
            scores = _processed(task.sample, scores, _of(run.past, here))
            found = _candidates(task, run, here, scores)
            going = lax.top_k(jnp.where(found.stopped, -jnp.inf, found.scores), size)
            chosen = found.at(going[1])._replace(scores=going[0])
            mine = jax.tree.map(lambda x, at=here: x[:, at], ended)
            mine, over = _settled(task, run.place + 1, found, chosen, mine, done[:, group])
            ended = jax.tree.map(lambda x, new, at=here: x.at[:, at].set(new), ended, mine)
            done = done.at[:, group].set(over)
            parts.append(chosen._replace(parent=chosen.parent + here.start))
        chosen = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
        failed = jnp.where(sick & ~jnp.all(run.done, axis=1), Reason.NOT_FINITE, run.sick)
        none = ~jnp.any(jnp.isfinite(chosen.scores), 1) & ~jnp.any(jnp.isfinite(ended.scores), 1)
        failed = jnp.where(none & (failed == 0), Reason.BANNED, failed).astype(jnp.int32)
        done = done | (failed > 0)[:, None] | (none | (run.place + 1 >= task.limit[:, 0]))[:, None]
        return _reordered(task, run, chosen, cache)._replace(ended=ended, done=done, sick=failed)

    return body


class _Candidates(NamedTuple):
    """The best continuations of one group's beams, the best first [B, C, ...]."""

    scores: Array
    parent: Array
    token: Array
    tokens: Array
    logprobs: Array
    stopped: Array  # the token is a stop id

    def at(self, index: Int[Array, "B M"]) -> _Candidates:
        """Return those at `index`."""
        return _Candidates(*(_gathered(x, index) for x in self))


def _candidates(task: _Task, run: _Beams, here: slice, scores: Float[Array, "B K V"]):
    batch, size, vocab = scores.shape
    total = (scores + run.scores[:, here, None]).reshape(batch, size * vocab)
    # So many that enough go on even if every beam's likeliest tokens are all its stop ids.
    width = min(max(2, 1 + task.stops.shape[-1]) * size, size * vocab)
    best, index = _picked(task, total, width, run.place)
    parent, token = index // vocab, (index % vocab).astype(jnp.int32)
    single = jnp.take_along_axis(scores.reshape(batch, -1), index, axis=1)
    now = jnp.arange(task.length) == run.place
    return _Candidates(
        best,
        parent,
        token,
        jnp.where(now, token[..., None], _gathered(run.tokens[:, here], parent)),
        jnp.where(now, single[..., None], _gathered(run.logprobs[:, here], parent)),
        jnp.any(token[..., None] == task.stops[:, None], axis=-1),
    )


def _settled(
    task: _Task,
    made: Array,
    found: _Candidates,
    chosen: _Candidates,
    ended: _Ended,
    done: Bool[Array, "B"],
) -> tuple[_Ended, Bool[Array, "B"]]:
    """Return a group's texts that have ended by now, and whether it is done."""
    ranked = found.stopped & (jnp.arange(found.scores.shape[1]) < task.size)
    ended = _merged(task, made, ended, found, ranked & ~done[:, None], Reason.STOP)
    closed = done
    if task.search.groups > 1:
        # As transformers' scorer of groups does: the best candidate counts even if it ends, and
        # open beams don't join a group that is done.
        done = closed = done | _satisfied(task, made, ended, found.scores[:, 0])
    over = (made >= task.limit[:, 0]) & ~closed
    open_ = jnp.broadcast_to(over[:, None], chosen.token.shape)
    ended = _merged(task, made, ended, chosen, open_, Reason.LENGTH)
    if task.search.groups == 1:
        done = done | _satisfied(task, made, ended, chosen.scores[:, 0])
    return ended, done


def _merged(
    task: _Task,
    made: Array,
    ended: _Ended,
    fresh: _Candidates,
    which: Bool[Array, "B C"],
    reason: Reason,
) -> _Ended:
    """The best of the ended texts and `which` of the fresh ones."""
    scores = fresh.scores / jnp.power(
        made.astype(jnp.float32), column(jnp.asarray(task.search.length_penalty, jnp.float32))
    )
    new = _Ended(
        fresh.tokens,
        jnp.where(which, scores, -jnp.inf),
        jnp.broadcast_to(made, which.shape).astype(jnp.int32),
        jnp.full(which.shape, int(reason), jnp.int32),
        fresh.logprobs,
    )
    both = jax.tree.map(lambda old, x: jnp.concatenate([old, x], axis=1), ended, new)
    index = lax.top_k(both.scores, task.size)[1]
    return jax.tree.map(lambda x: _gathered(x, index), both)


def _satisfied(
    task: _Task, made: Array, ended: _Ended, best: Float[Array, "B"]
) -> Bool[Array, "B"]:
    """Which groups are full of texts that no open beam will beat, by the rule of the search."""
    rule = jnp.asarray(task.search.until)
    penalty = jnp.broadcast_to(jnp.asarray(task.search.length_penalty, jnp.float32), best.shape)
    far = (rule == RULES["certain"]) & (penalty > 0)
    at = jnp.where(far, task.limit[:, 0], made).astype(jnp.float32)
    worst = jnp.min(ended.scores, axis=1)
    beaten = worst >= best / jnp.power(at, penalty)
    return jnp.isfinite(worst) & ((rule == RULES["full"]) | beaten)


def _picked(task: _Task, total: Float[Array, "B C"], width: int, place: Array):
    """The candidates of each request, the best first."""
    if task.search.pick == "best":
        return lax.top_k(total, width)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(task.keys)
    # The largest of Gumbel-perturbed logits are a draw without replacement (Kool et al. 2019).
    noise = jax.vmap(lambda key: jax.random.gumbel(key, total.shape[1:]))(keys)
    index = lax.top_k(total + noise, width)[1]
    order = jnp.argsort(-jnp.take_along_axis(total, index, axis=1), axis=1, stable=True)
    index = jnp.take_along_axis(index, order, axis=1)
    return jnp.take_along_axis(total, index, axis=1), index


def _apart(
    task: _Task, scores: Float[Array, "B K V"], earlier: list[_Candidates], done: Bool[Array, "B G"]
) -> Float[Array, "B K V"]:
    """Scores less the diversity for every beam of earlier groups that chose the same token."""
    if not earlier:
        return scores
    tokens = jnp.concatenate([group.token for group in earlier], axis=1)
    counted = jnp.repeat(~done[:, : len(earlier)], task.size, axis=1)
    chosen = pasts.counts(tokens, counted, scores.shape[-1])
    return scores - (column(task.search.diversity) * chosen)[:, None]


def _processed(sample: Chain, scores: Float[Array, "B K V"], past: Past | None) -> Array:
    # Beam by beam, so that settings [B] of the processors meet rows [B, V].
    return jax.vmap(sample.process, in_axes=1, out_axes=1)(scores, past)


def _of(past: Past | None, here: slice) -> Past | None:
    return None if past is None else jax.tree.map(lambda x: x[:, here], past)


def _gathered(x: Array, index: Int[Array, "B M"]) -> Array:
    """x[b, index[b, m]]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def _reordered(task: _Task, run: _Beams, chosen: _Candidates, cache: Any) -> _Beams:
    batch, count = chosen.token.shape
    parents = (jnp.arange(batch)[:, None] * count + chosen.parent).reshape(-1)
    past = run.past
    if past is not None:
        past = jax.tree.map(lambda x: _gathered(x, chosen.parent), past)
        past = jax.vmap(lambda one, new: pasts.advance(task.sample, one, new), (1, 1), 1)(
            past, chosen.token
        )
    return run._replace(
        place=run.place + 1,
        token=chosen.token,
        scores=chosen.scores,
        tokens=chosen.tokens,
        logprobs=chosen.logprobs,
        cache=rows.take(cache, parents),
        past=past,
    )


def _found(task: _Task, run: _Beams, returned: int) -> Found:
    scores, index = lax.top_k(run.ended.scores, returned)
    tokens, _, made, reason, logprobs = jax.tree.map(lambda x: _gathered(x, index), run.ended)
    failed = (run.sick > 0)[:, None]
    made = jnp.where(failed, 0, made)
    places = jnp.arange(task.length)
    last = jnp.take_along_axis(tokens, jnp.maximum(made - 1, 0)[..., None], axis=2)
    tokens = jnp.where(places < made[..., None], tokens, last)
    tokens = jnp.where(failed[..., None], NOT_FINITE, tokens)
    scores = jnp.where(failed, -jnp.inf, scores)
    logprobs = jnp.where(places < made[..., None], logprobs, 0.0)
    return Found(tokens, scores, made, jnp.where(failed, run.sick[:, None], reason), logprobs)

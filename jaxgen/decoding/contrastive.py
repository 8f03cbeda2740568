"""Contrastive search (Su et al. 2022): likely tokens whose hidden state repeats no earlier one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from jaxgen import arguments
from jaxgen.arguments import at_least, between
from jaxgen.decoding import fits, rows
from jaxgen.decoding import past as pasts
from jaxgen.decoding.chain import NOT_FINITE, Chain, checked
from jaxgen.decoding.loop import LOOP, Count, Plan, Stops, plan_of
from jaxgen.decoding.past import Past
from jaxgen.decoding.setting import Number, column
from jaxgen.decoding.stop import StopStrings
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.varying import while_loop

Seeing = Callable[[Int[Array, "B"], Any], tuple[Float[Array, "B V"], Float[Array, "B D"], Any]]


class _Run(NamedTuple):
    place: Array
    token: Array
    tokens: Array
    logits: Array
    cache: Any
    seen: Array  # unit hidden states [B, S + length, D]
    length: Array  # of them, by row
    done: Array
    past: Past | None
    watched: Array | None


@arguments.checked(**LOOP, count=at_least(1), penalty=between(0, 1), seen_lengths=between(0, "S"))
def contrastive_search(
    step: Seeing,
    cache: Any,
    first: Int[Array | np.ndarray, "B"],
    sample: Chain,
    length: int,
    *,
    count: int,
    penalty: Number,
    seen: Float[Array, "B S D"],
    seen_lengths: Int[Array, "B"] | np.ndarray,
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> Int[Array, "B length"]:
    """Return `length` new tokens per request; like greedy decoding, it draws nothing.

    step: (tokens, cache) -> (logits, last hidden states, cache). Of the `count` likeliest tokens
      that is taken whose (1 - penalty) * probability - penalty * (largest cosine with the hidden
      states before) is largest; each of them is read, so a step costs a batch `count` times larger.
    penalty: alpha of the paper, a number or [B] in [0, 1]; 0 is greedy.
    seen: hidden states of the prompts before `first`, `seen_lengths` of them real.
    sample: its processors come before the choice. The rest is as in `decode`.
    Raises ConfigError for a count below 1, or a penalty outside [0, 1].
    """
    fits.check(sample, length)
    if count == 1 and isinstance(penalty, (int, float)) and penalty:
        raise ConfigError(f"penalty={penalty} has no effect with count=1: nothing is to choose")
    held = {"seen": seen, "seen_lengths": seen_lengths, "prompt": prompt, "lengths": lengths}
    ends = {"stop": stop, "strings": strings, "limit": limit}
    return _search(step, cache, first, sample, length, count, jnp.asarray(penalty), **held, **ends)


@compile_once
@auto_inside("first")
def _search(
    step, cache, first, sample, length, count, penalty, *,
    seen, seen_lengths, prompt, lengths, stop, strings, limit,
) -> Int[Array, "B length"]:  # fmt: skip
    batch, first = first.shape[0], jnp.asarray(first, jnp.int32)
    key = jax.random.key(0)  # of a plan; nothing is drawn
    plan = plan_of(sample, first, key, length, stop, strings, 0, limit, prompt, lengths)
    logits, hidden, cache = step(jnp.maximum(first, 0), cache)
    room = jnp.pad(_unit(seen), ((0, 0), (0, length + 1), (0, 0)))
    known = jnp.asarray(seen_lengths, jnp.int32)

    begun = _Run(
        jnp.zeros((), jnp.int32),
        first,
        jnp.broadcast_to(first[:, None], (batch, length)),
        logits,
        cache,
        room.at[jnp.arange(batch), known].set(_unit(hidden)),
        known + 1,
        (first == NOT_FINITE) | plan.spent(0),
        plan.history,
        plan.watched,
    )
    going = lambda run: (run.place < length) & ~jnp.all(run.done)  # noqa: E731
    run = while_loop(going, _body(step, sample, plan, count, penalty), begun)
    return jnp.where(jnp.arange(length) >= run.place, run.token[:, None], run.tokens)


def _body(step: Seeing, sample: Chain, plan: Plan, count: int, penalty: Any):
    def body(run: _Run) -> _Run:
        batch = run.token.shape[0]
        wide = min(count, run.logits.shape[-1])
        extra = () if run.past is None else (run.past,)
        scores = sample.process(run.logits.astype(jnp.float32), *extra)
        probs, ids = lax.top_k(jax.nn.softmax(scores, axis=-1), wide)
        spread = rows.repeat(run.cache, batch, wide)
        logits, hidden, cache = step(ids.reshape(-1), spread)
        hidden = _unit(hidden).reshape(batch, wide, -1)
        cosines = jnp.einsum("BSD,BKD->BKS", run.seen, hidden)
        real = jnp.arange(run.seen.shape[1])[None] < run.length[:, None]
        likeness = jnp.max(jnp.where(real[:, None], cosines, -jnp.inf), axis=-1)
        alpha = column(penalty)
        merit = jnp.where(probs > 0, (1 - alpha) * probs - alpha * likeness, -jnp.inf)
        best = jnp.argmax(merit, axis=-1)
        new = jnp.take_along_axis(ids, best[:, None], axis=1)[:, 0].astype(jnp.int32)
        new = checked(checked(new, scores), run.logits)
        new = jnp.where(run.done, run.token, new)
        index = jnp.arange(batch) * wide + best
        chosen = jnp.take_along_axis(hidden, best[:, None, None], axis=1)[:, 0]
        past = None if run.past is None else pasts.advance(sample, run.past, new)
        watched = plan.watch(run.watched, new, run.done)
        return _Run(
            run.place + 1,
            new,
            run.tokens.at[:, run.place].set(new),
            logits[index],
            rows.take(cache, index),
            run.seen.at[jnp.arange(batch), run.length].set(chosen),
            run.length + 1,
            run.done | plan.ends(new, run.place + 1, watched),
            past,
            watched,
        )

    return body


def _unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

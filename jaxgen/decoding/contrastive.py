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
from jaxgen.decoding import cache_rows
from jaxgen.decoding.chain import NOT_FINITE, Chain, check_chain, checked
from jaxgen.decoding.detailed import Decoded, logprob_of, reason_of
from jaxgen.decoding.history import History, append_token
from jaxgen.decoding.loop import LOOP, Count, DecodeSpec, Stops, make_spec
from jaxgen.decoding.per_request import Number, column
from jaxgen.decoding.stop import Reason, StopStrings
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.varying import while_loop

StepWithHidden = Callable[
    [Int[Array, "B"], Any], tuple[Float[Array, "B V"], Float[Array, "B D"], Any]
]


class _LoopState(NamedTuple):
    place: Array
    token: Array
    tokens: Array
    num_generated: Array
    reason: Array
    logprobs: Array
    logits: Array
    cache: Any
    seen: Array  # unit hidden states [B, S + length, D]
    length: Array  # of them, by row
    done: Array
    history: History | None
    stop_state: Array | None


@arguments.checked(**LOOP, count=at_least(1), penalty=between(0, 1), seen_lengths=between(0, "S"))
def contrastive_search(
    step: StepWithHidden,
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
) -> Decoded:
    """Return `length` new tokens per request as a `Decoded`; like greedy, it draws nothing.

    step: (tokens, cache) -> (logits, last hidden states, cache). Of the `count` likeliest tokens
      that is taken whose (1 - penalty) * probability - penalty * (largest cosine with the hidden
      states before) is largest; each of them is read, so a step costs a batch `count` times larger.
    penalty: alpha of the paper, a number or [B] in [0, 1]; 0 is greedy.
    seen: hidden states of the prompts before `first`, `seen_lengths` of them real.
    sample: its processors come before the choice. The rest is as in `decode`.
    Raises ConfigError for a count below 1, or a penalty outside [0, 1].
    """
    check_chain(sample, length)
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
) -> Decoded:  # fmt: skip
    batch, first = first.shape[0], jnp.asarray(first, jnp.int32)
    key = jax.random.key(0)  # of a plan; nothing is drawn
    spec = make_spec(sample, first, key, length, stop, strings, 0, limit, prompt, lengths)
    logits, hidden, cache = step(jnp.maximum(first, 0), cache)
    room = jnp.pad(_unit(seen), ((0, 0), (0, length + 1), (0, 0)))
    known = jnp.asarray(seen_lengths, jnp.int32)

    begun = _LoopState(
        jnp.zeros((), jnp.int32),
        first,
        jnp.broadcast_to(first[:, None], (batch, length)),
        jnp.zeros(batch, jnp.int32),
        jnp.where(first == NOT_FINITE, Reason.NOT_FINITE, Reason.LENGTH).astype(jnp.int32),
        jnp.zeros((batch, length)),
        logits,
        cache,
        room.at[jnp.arange(batch), known].set(_unit(hidden)),
        known + 1,
        (first == NOT_FINITE) | spec.spent(0),
        spec.history,
        spec.initial_stop_state,
    )
    going = lambda state: (state.place < length) & ~jnp.all(state.done)  # noqa: E731
    state = while_loop(going, _body(step, sample, spec, count, penalty), begun)
    tokens = jnp.where(jnp.arange(length) >= state.place, state.token[:, None], state.tokens)
    return Decoded(tokens, state.num_generated, state.reason, state.logprobs)


def _body(step: StepWithHidden, sample: Chain, spec: DecodeSpec, count: int, penalty: Any):
    def body(state: _LoopState) -> _LoopState:
        batch = state.token.shape[0]
        wide = min(count, state.logits.shape[-1])
        extra = () if state.history is None else (state.history,)
        scores = sample.process(state.logits.astype(jnp.float32), *extra)
        probs, ids = lax.top_k(jax.nn.softmax(scores, axis=-1), wide)
        spread = cache_rows.repeat(state.cache, batch, wide)
        logits, hidden, cache = step(ids.reshape(-1), spread)
        hidden = _unit(hidden).reshape(batch, wide, -1)
        cosines = jnp.einsum("BSD,BKD->BKS", state.seen, hidden)
        real = jnp.arange(state.seen.shape[1])[None] < state.length[:, None]
        likeness = jnp.max(jnp.where(real[:, None], cosines, -jnp.inf), axis=-1)
        alpha = column(penalty)
        merit = jnp.where(probs > 0, (1 - alpha) * probs - alpha * likeness, -jnp.inf)
        best = jnp.argmax(merit, axis=-1)
        new = jnp.take_along_axis(ids, best[:, None], axis=1)[:, 0].astype(jnp.int32)
        new = checked(checked(new, scores), state.logits)
        new = jnp.where(state.done, state.token, new)
        index = jnp.arange(batch) * wide + best
        chosen = jnp.take_along_axis(hidden, best[:, None, None], axis=1)[:, 0]
        history = None if state.history is None else append_token(sample, state.history, new)
        stop_state = spec.advance_stop_state(state.stop_state, new, state.done)
        reason = reason_of(new, state.logits, stop_state, spec.stopped(new)).astype(jnp.int32)
        drawn = ~state.done & (new != NOT_FINITE)
        logprob = jnp.where(drawn, logprob_of(new, state.logits), 0.0)
        return _LoopState(
            state.place + 1,
            new,
            state.tokens.at[:, state.place].set(new),
            state.num_generated + drawn,
            jnp.where(state.done, state.reason, reason),
            state.logprobs.at[:, state.place].set(logprob),
            logits[index],
            cache_rows.take(cache, index),
            state.seen.at[jnp.arange(batch), state.length].set(chosen),
            state.length + 1,
            state.done | spec.ends(new, state.place + 1, stop_state),
            history,
            stop_state,
        )

    return body


def _unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

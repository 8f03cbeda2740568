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
from jaxgen.decoding.chain import NOT_FINITE, Chain, check_chain, mark_not_finite
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
    position: Array
    token: Array
    tokens: Array
    num_generated: Array
    reason: Array
    logprobs: Array
    logits: Array
    cache: Any
    hidden: Array  # unit hidden states so far [B, S + length + 1, D]
    num_hidden: Array  # valid ones of each row
    done: Array
    history: History | None
    stop_state: Array | None


@arguments.checked(
    **LOOP, count=at_least(1), penalty=between(0, 1), prompt_hidden_lengths=between(0, "S")
)
def contrastive_search(
    step: StepWithHidden,
    cache: Any,
    first: Int[Array | np.ndarray, "B"],
    sample: Chain,
    length: int,
    *,
    count: int,
    penalty: Number,
    prompt_hidden: Float[Array, "B S D"],
    prompt_hidden_lengths: Int[Array, "B"] | np.ndarray,
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> Decoded:
    """Decode by contrastive search, which is deterministic (Su et al. 2022).

    Of the `count` most probable tokens it takes the one with the largest (1 - penalty) *
    probability - penalty * (largest cosine with earlier hidden states). A step reads all of them,
    and so costs a batch `count` times larger.

    Args:
        step: (tokens [B], cache) -> (logits [B, V], last hidden states [B, D], cache).
        cache, first, length, stop, strings, limit, prompt, lengths: as in `decode`.
        sample: its processors are applied before the choice; it does not draw.
        count: number of candidates, at least 1.
        penalty: alpha of the paper, a number or [B] in [0, 1]; 0 is greedy.
        prompt_hidden: hidden states of the prompts before `first`, padded on the right.
        prompt_hidden_lengths: valid ones of each request [B], at most S.

    Returns:
        Decoded: tokens [B, length], with the model's log-probabilities.

    Raises:
        ConfigError: as `decode`, and for a count or penalty out of range.

    >>> step = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), jnp.eye(5)[tokens], cache)
    >>> args = (step, (), jnp.array([0]), jaxgen.chain(), 3)
    >>> state = {"prompt_hidden": jnp.ones((1, 1, 5)), "prompt_hidden_lengths": jnp.array([0])}
    >>> jaxgen.contrastive_search(*args, count=2, penalty=0.1, **state).tokens
    Array([[1, 2, 3]], dtype=int32)
    """
    check_chain(sample, length)
    if count == 1 and isinstance(penalty, (int, float)) and penalty:
        raise ConfigError(f"penalty={penalty} has no effect with count=1: nothing is to choose")
    states = (prompt_hidden, prompt_hidden_lengths)
    options = {
        "prompt": prompt,
        "lengths": lengths,
        "stop": stop,
        "strings": strings,
        "limit": limit,
    }
    penalty = jnp.asarray(penalty)
    return _search(step, cache, first, sample, length, count, penalty, *states, **options)


@compile_once
@auto_inside("first")
def _search(
    step, cache, first, sample, length, count, penalty, prompt_hidden, prompt_hidden_lengths, *,
    prompt, lengths, stop, strings, limit,
) -> Decoded:  # fmt: skip
    batch, first = first.shape[0], jnp.asarray(first, jnp.int32)
    key = jax.random.key(0)  # for DecodeSpec; nothing is drawn
    spec = make_spec(sample, first, key, length, stop, strings, 0, limit, prompt, lengths)
    logits, hidden, cache = step(jnp.maximum(first, 0), cache)
    room = jnp.pad(_normalize(prompt_hidden), ((0, 0), (0, length + 1), (0, 0)))
    num_hidden = jnp.asarray(prompt_hidden_lengths, jnp.int32)

    begin = _LoopState(
        jnp.zeros((), jnp.int32),
        first,
        jnp.broadcast_to(first[:, None], (batch, length)),
        jnp.zeros(batch, jnp.int32),
        jnp.where(first == NOT_FINITE, Reason.NOT_FINITE, Reason.LENGTH).astype(jnp.int32),
        jnp.zeros((batch, length), jnp.float32),
        logits,
        cache,
        room.at[jnp.arange(batch), num_hidden].set(_normalize(hidden)),
        num_hidden + 1,
        (first == NOT_FINITE) | spec.is_spent(0),
        spec.history,
        spec.initial_stop_state,
    )
    going = lambda state: (state.position < length) & ~jnp.all(state.done)  # noqa: E731
    state = while_loop(going, _body(step, sample, spec, count, penalty), begin)
    tokens = jnp.where(jnp.arange(length) >= state.position, state.token[:, None], state.tokens)
    return Decoded(tokens, state.num_generated, state.reason, state.logprobs)


def _body(step: StepWithHidden, sample: Chain, spec: DecodeSpec, count: int, penalty: Any):
    def body(state: _LoopState) -> _LoopState:
        batch = state.token.shape[0]
        width = min(count, state.logits.shape[-1])
        extra = () if state.history is None else (state.history,)
        scores = sample.process(state.logits.astype(jnp.float32), *extra)
        probs, ids = lax.top_k(jax.nn.softmax(scores, axis=-1), width)
        repeated = cache_rows.repeat(state.cache, batch, width)
        logits, hidden, cache = step(ids.reshape(-1), repeated)
        hidden = _normalize(hidden).reshape(batch, width, -1)
        cosines = jnp.einsum("BSD,BKD->BKS", state.hidden, hidden)
        valid = jnp.arange(state.hidden.shape[1])[None] < state.num_hidden[:, None]
        similarity = jnp.max(jnp.where(valid[:, None], cosines, -jnp.inf), axis=-1)
        alpha = column(penalty)
        merit = jnp.where(probs > 0, (1 - alpha) * probs - alpha * similarity, -jnp.inf)
        best = jnp.argmax(merit, axis=-1)
        new = jnp.take_along_axis(ids, best[:, None], axis=1)[:, 0].astype(jnp.int32)
        new = mark_not_finite(mark_not_finite(new, scores), state.logits)
        new = jnp.where(state.done, state.token, new)
        index = jnp.arange(batch) * width + best
        chosen = jnp.take_along_axis(hidden, best[:, None, None], axis=1)[:, 0]
        history = None if state.history is None else append_token(sample, state.history, new)
        stop_state = spec.advance_stop_state(state.stop_state, new, state.done)
        reason = reason_of(new, state.logits, stop_state, spec.is_stop(new)).astype(jnp.int32)
        valid = ~state.done & (new != NOT_FINITE)
        logprob = jnp.where(valid, logprob_of(new, state.logits), 0.0)
        return _LoopState(
            state.position + 1,
            new,
            state.tokens.at[:, state.position].set(new),
            state.num_generated + valid.astype(jnp.int32),
            jnp.where(state.done, state.reason, reason),
            state.logprobs.at[:, state.position].set(logprob),
            logits[index],
            cache_rows.take(cache, index),
            state.hidden.at[jnp.arange(batch), state.num_hidden].set(chosen),
            state.num_hidden + 1,
            state.done | spec.ends(new, state.position + 1, stop_state),
            history,
            stop_state,
        )

    return body


def _normalize(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

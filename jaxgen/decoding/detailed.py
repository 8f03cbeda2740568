"""Decoding that also says how it went: why requests ended, and how likely each token was."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding.chain import NOT_FINITE, Chain, checked
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.loop import LOOP, Count, Keys, Step, Stops, loop, make_spec
from jaxgen.decoding.stop import Reason, StopStrings, ended_by
from jaxgen.eager import compile_once
from jaxgen.mesh.explicit import auto_inside, with_cache

Scores = Literal["model", "chain"]


class Decoded(NamedTuple):
    """New tokens and what is known of them; past a request's end, zeros and NO_TOKEN."""

    tokens: Int[Array, "B length"]
    cache: Any
    num_generated: Int[Array, "B"]  # new tokens, the stop token included
    reason: Int[Array, "B"]  # a Reason
    logprobs: Float[Array, "B length"]  # natural logarithms
    top_ids: Int[Array, "B length K"]  # the likeliest first
    top_logprobs: Float[Array, "B length K"]
    strings: StopStrings | None  # where the texts stand now: give it to the next chunk


class _Record(NamedTuple):
    num_generated: Array
    reason: Array
    logprobs: Array
    top_ids: Array
    top_logprobs: Array


@arguments.checked(**LOOP, top=at_least(0))
@compile_once
@auto_inside("first", with_cache)
def decode_detailed(
    step: Step,
    cache: Any,
    first: Int[Array | np.ndarray, "B"],
    key: Keys,
    sample: Chain,
    length: int,
    *,
    top: int,
    scores: Scores = "model",
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    start: Int[Array, ""] | int = 0,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> Decoded:
    """Return what `decode` returns, and each token's log-probability with `top` alternatives.

    scores: "model" takes log-probabilities from the step's logits, "chain" after the processors.
    The other arguments are those of `decode`. Counts and reasons are of this call, so a chunk of
    a request that ended before has num_generated=0.
    Raises ConfigError for a negative `top`, and what `decode` raises.
    """
    batch = first.shape[0]
    spec = make_spec(sample, first, key, length, stop, strings, start, limit, prompt, lengths)

    def observe(record, state, logits, new, history):
        logits = logits.astype(jnp.float32)
        usable = checked(jnp.zeros_like(new), logits) != NOT_FINITE
        failed = jnp.where(usable, Reason.BANNED, Reason.NOT_FINITE)
        ended = ended_by(
            spec.advance_stop_state(state.stop_state, new, state.done), spec.stopped(new)
        )
        reason = jnp.where(new == NOT_FINITE, failed, ended)
        shown = sample.process(logits, history) if scores == "chain" else logits
        logprobs = jax.nn.log_softmax(shown, axis=-1)
        chosen = jnp.take_along_axis(logprobs, jnp.maximum(new, 0)[:, None], axis=-1)[:, 0]
        best, ids = jax.lax.top_k(logprobs, top)
        alive, drawn = ~state.done, ~state.done & (new != NOT_FINITE)
        keep = drawn[:, None]
        return _Record(
            record.num_generated + drawn,
            jnp.where(alive, reason, record.reason).astype(jnp.int32),
            record.logprobs.at[:, state.place].set(jnp.where(drawn, chosen, 0.0)),
            record.top_ids.at[:, state.place].set(jnp.where(keep, ids, NO_TOKEN)),
            record.top_logprobs.at[:, state.place].set(jnp.where(keep, best, 0.0)),
        )

    before = ended_by(spec.initial_stop_state, spec.stopped(spec.first) & (jnp.asarray(start) > 0))
    record = _Record(
        jnp.zeros(batch, jnp.int32),
        jnp.where(first == NOT_FINITE, Reason.NOT_FINITE, before).astype(jnp.int32),
        jnp.zeros((batch, length)),
        jnp.full((batch, length, top), NO_TOKEN, jnp.int32),
        jnp.zeros((batch, length, top)),
    )
    state = loop(step, cache, spec, record, observe)
    after = None if strings is None else strings.at(state.stop_state)
    return Decoded(state.tokens, state.cache, *state.record, strings=after)

"""Decoding with log-probabilities, alternatives and the reason why each request ended."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding import snapshots
from jaxgen.decoding.chain import NOT_FINITE, Chain, mark_not_finite
from jaxgen.decoding.drafts import Draft
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.loop import (
    LOOP,
    Count,
    DecodeSpec,
    Keys,
    Observe,
    Step,
    Stops,
    has_room,
    loop,
    make_spec,
)
from jaxgen.decoding.read_ahead import num_tokens, put
from jaxgen.decoding.stop import Reason, StopStrings, ended_by
from jaxgen.eager import compile_once
from jaxgen.mesh.explicit import auto_inside, with_cache

Scores = Literal["model", "chain"]


class Decoded(NamedTuple):
    """Texts, in the one shape that all strategies return; fields of other strategies are None.

    Past its end a text repeats its last token; its log-probabilities there are 0, top_ids NO_TOKEN.
    A beam search has N texts for each request, the best first: [B, N] and [B, N, length].
    """

    tokens: Int[Array, "*B length"]
    num_generated: Int[Array, "*B"]  # new tokens, the stop token included
    reason: Int[Array, "*B"]  # a Reason
    logprobs: Float[Array, "*B length"]  # of each token, in nats
    top_ids: Int[Array, "B length K"] | None = None  # alternatives, the most probable first
    top_logprobs: Float[Array, "B length K"] | None = None
    # Of a beam search:
    scores: Float[Array, "B N"] | None = None  # logprob sum / num_generated^length_penalty, or -inf
    constraints_met: Bool[Array, "B N"] | None = None  # all words are there that must appear
    # Of speculation:
    guessed: Int[Array, "B"] | None = None  # drafted tokens that the model has read
    accepted: Int[Array, "B"] | None = None  # of them, those accepted
    steps: Int[Array, ""] | None = None  # calls of the model; of `decode_detailed`, too
    # Arguments of the next chunk, of `decode_detailed`:
    cache: Any = None
    strings: StopStrings | None = None
    states: tuple[Any, ...] = ()

    def without_cache(self) -> Decoded:
        """Return the texts without the arguments of another chunk."""
        return self._replace(cache=None, strings=None, states=())


class _Stats(NamedTuple):
    num_generated: Array
    reason: Array
    logprobs: Array
    top_ids: Array
    top_logprobs: Array


def _has_room(path: str, cache: Any, call: arguments.Call) -> None:
    given, draft = call.given, call.given.get("draft")
    more = {} if draft is None else {"length": num_tokens(given["length"], draft)}
    has_room(path, cache, arguments.Call(given | more))


@arguments.checked(**LOOP | {"cache": _has_room}, top=at_least(0), calls=at_least(0))
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
    start: Count = 0,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
    states: tuple[Any, ...] | None = None,
    wanted: Bool[Array | np.ndarray, ""] | bool = True,
    calls: Count | None = None,
    draft: Draft | None = None,
) -> Decoded:
    """Decode as `decode` does, with each token's log-probability and `top` alternatives.

    Args:
        step, cache, first, key, sample, length, stop, strings, start, limit, prompt, lengths: as in
            `decode`.
        top: number K of alternatives at each position, at least 0.
        scores: "model" takes log-probabilities from the step's logits, "chain" after the
            processors.
        states: as in `decode_chunk`.
        wanted: False leaves the log-probabilities and alternatives of this call at 0.
        calls: of the step at most, where they are fewer than `length`.
        draft: `lookup(count)`: each call of the step, then (tokens [B, T], cache) -> (logits
            [B, T, V], cache), reads `count` guesses, and those that equal the draws are kept. The
            text is the same. `length` is the number of calls, for up to count + 1 tokens each, and
            the cache needs room for `count` more; it can be rewound (`snapshots.rewind`).

    Returns:
        Decoded. Counts and reasons are of this call: a chunk of a request that ended before has
        num_generated=0.

    Raises:
        ConfigError: as `decode`, and for a negative `top`.

    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), cache)
    >>> args = (count, (), jnp.array([0]), jax.random.key(0), jaxgen.greedy(), 3)
    >>> jaxgen.decode_detailed(*args, top=1, stop=[2]).num_generated
    Array([2], dtype=int32)
    """
    width = num_tokens(length, draft)
    if draft is not None:
        snapshots.check_rewind(cache, draft.count + 1)
    about = (stop, strings, start, limit, prompt, lengths, states)
    spec = make_spec(sample, first, key, length, *about, draft)._replace(calls=calls)
    stats = _initial_stats(spec, start, width, top)
    state = loop(step, cache, spec, stats, _observe(spec, top, scores, wanted), draft)
    after = None if strings is None else strings.at(state.stop_state)
    more = {"strings": after, "states": state.states, "steps": state.calls}
    return Decoded(state.tokens, *state.stats, cache=state.cache, **more)


def _initial_stats(spec: DecodeSpec, start: Count, width: int, top: int) -> _Stats:
    """Return the statistics before the first step of a call, for `width` tokens of a row."""
    batch = spec.first.shape[0]
    before = ended_by(spec.initial_stop_state, spec.is_stop(spec.first) & (jnp.asarray(start) > 0))
    return _Stats(
        jnp.zeros(batch, jnp.int32),
        jnp.where(spec.first == NOT_FINITE, Reason.NOT_FINITE, before).astype(jnp.int32),
        jnp.zeros((batch, width), jnp.float32),
        jnp.full((batch, width, top), NO_TOKEN, jnp.int32),
        jnp.zeros((batch, width, top), jnp.float32),
    )


def _observe(spec: DecodeSpec, top: int, scores: Scores, wanted: Any) -> Observe:
    def measure(logits, new, history):
        shown = spec.sample.process(logits, history) if scores == "chain" else logits
        logprobs = jax.nn.log_softmax(shown, axis=-1)
        chosen = jnp.take_along_axis(logprobs, jnp.maximum(new, 0)[:, None], axis=-1)[:, 0]
        return chosen, *jax.lax.top_k(logprobs, top)

    def leave_out(logits, new, history):
        shape = (new.shape[0], top)
        return jnp.zeros_like(logits[:, 0]), jnp.zeros(shape), jnp.zeros(shape, jnp.int32)

    def observe(stats, state, logits, new, history):
        logits = logits.astype(jnp.float32)
        stop_state = spec.advance_stop_state(state.stop_state, new, state.done)
        reason = reason_of(new, logits, stop_state, spec.is_stop(new))
        read = (logits, new, history)
        if wanted is True:
            chosen, best, ids = measure(*read)
        else:
            chosen, best, ids = jax.lax.cond(wanted, measure, leave_out, *read)
        alive, valid = ~state.done, ~state.done & (new != NOT_FINITE)
        keep = valid[:, None]
        return _Stats(
            stats.num_generated + valid,
            jnp.where(alive, reason, stats.reason).astype(jnp.int32),
            put(stats.logprobs, state.position, jnp.where(valid, chosen, 0.0)),
            put(stats.top_ids, state.position, jnp.where(keep, ids, NO_TOKEN)),
            put(stats.top_logprobs, state.position, jnp.where(keep, best, 0.0)),
        )

    return observe


def reason_of(
    token: Int[Array, "B"], logits: Float[Array, "B V"], stop_state: Any, stopped: Bool[Array, "B"]
) -> Int[Array, "B"]:
    """Return the Reason of rows that end with `token`, of the model's logits; else LENGTH."""
    usable = mark_not_finite(jnp.zeros_like(token), logits) != NOT_FINITE
    failed = jnp.where(usable, Reason.BANNED, Reason.NOT_FINITE)
    return jnp.where(token == NOT_FINITE, failed, ended_by(stop_state, stopped))


def logprob_of(token: Int[Array, "B"], logits: Float[Array, "B V"]) -> Float[Array, "B"]:
    """Return the log-probability of each token in nats; 0 for NOT_FINITE."""
    logits = logits.astype(jnp.float32)
    own = jnp.take_along_axis(logits, jnp.maximum(token, 0)[:, None], axis=1)[:, 0]
    return jnp.where(token == NOT_FINITE, 0.0, own - jax.nn.logsumexp(logits, axis=1))

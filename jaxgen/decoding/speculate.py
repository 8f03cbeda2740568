"""Speculative decoding: a draft guesses some tokens, the target reads them all in one step.

The tokens are distributed exactly as the target's own draws (Leviathan et al. 2023; Chen et al.
2023), and greedy decoding is token for token the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from jaxgen import arguments
from jaxgen.decoding import snapshots
from jaxgen.decoding.chain import (
    NOT_FINITE,
    Chain,
    check_chain,
    initial_history,
    mark_not_finite,
)
from jaxgen.decoding.detailed import Decoded, logprob_of
from jaxgen.decoding.drafts import Draft, Guess
from jaxgen.decoding.history import (
    NO_TOKEN,
    History,
    append_token,
)
from jaxgen.decoding.loop import LOOP, NO_STOP, Count, Keys, Step, Stops, request_keys
from jaxgen.decoding.stop import Reason, StopStrings, ended_by, has_stop_string
from jaxgen.eager import compile_once
from jaxgen.mesh.explicit import auto_inside
from jaxgen.ops.random import categorical
from jaxgen.pytree import register_dataclass
from jaxgen.varying import fori_loop, scan, while_loop

# (tokens [B, T], cache) -> (logits [B, T, V], cache)
MultiTokenStep = Callable[[Any, Any], tuple[Any, Any]]


@arguments.checked
def multi_token_step(step: Step) -> MultiTokenStep:
    """Return the step that reads several tokens one after the other: exact, but no faster.

    Args:
        step: (tokens [B], cache) -> (logits [B, V], cache).

    Returns:
        (tokens [B, T], cache) -> (logits [B, T, V], cache), the target of `speculate`; its cache
        can be rewound.

    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), cache)
    >>> jaxgen.multi_token_step(count)(jnp.array([[1, 2, 3]]), ())[0].argmax(-1)
    Array([[2, 3, 4]], dtype=int32)
    """
    return _TokenByToken(step)


reader = multi_token_step  # the name of version 0.1


@register_dataclass
@dataclass(frozen=True)
class _TokenByToken:
    step: Step

    def __call__(self, tokens: Int[Array, "B T"], cache: Any) -> tuple[Array, Any]:
        take_snapshot = snapshots.snapshot_function(cache)
        before = take_snapshot(cache)

        def one(cache, token):
            logits, cache = self.step(token, cache)
            return cache, (logits, take_snapshot(cache))

        cache, (logits, states) = scan(one, cache, tokens.T)
        return jnp.moveaxis(logits, 0, 1), snapshots.with_snapshots(cache, before, states)


class _LoopState(NamedTuple):
    token: Array
    tokens: Array
    logprobs: Array
    cache: Any
    draft: Any
    history: History
    stop_state: Array | None  # of the stop-string automata
    done: Array
    guessed: Array
    accepted: Array
    steps: Array


class _StopRules(NamedTuple):
    stops: Array
    strings: StopStrings | None
    limit: Array  # [B]: new tokens


@arguments.checked(**LOOP)
def speculate(
    read: MultiTokenStep,
    cache: Any,
    first: Int[Array | np.ndarray, "B"],
    key: Keys,
    sample: Chain,
    length: int,
    draft: Draft,
    *,
    prompt: Integer[Array, "B S"] | np.ndarray,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    limit: Count | None = None,
) -> Decoded:
    """Decode speculatively: fewer calls of the target for draws of the same distribution.

    Args:
        read: (tokens [B, T], cache) -> (logits [B, T, V], cache), the target, such as
            `multi_token_step(step)` or a Transformer's `model_step(..., tokens="several")`.
        cache: the target's; it and the draft's can be rewound (see `snapshots.rewind`) and have
            draft.count + 1 slots more than the text needs.
        first, key, sample, length, prompt, lengths, stop, strings, limit: as in `decode`. Draws
            differ from those of `decode`, but are a function of a request's key and position too.
        draft: `draft_model(...)` or `lookup(...)`.

    Returns:
        Decoded: tokens [B, length], the model's log-probabilities, and counts of the guesses. A row
        that the processors leave no token counts as not finite.

    Raises:
        ConfigError: as `decode`, and for a cache that can't be rewound so far.

    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), cache)
    >>> args = (jnp.array([0]), jax.random.key(0), jaxgen.greedy(), 3)
    >>> draft = jaxgen.draft_model(count, (), jaxgen.greedy(), 2)
    >>> read = jaxgen.multi_token_step(count)
    >>> jaxgen.speculate(read, (), *args, draft, prompt=jnp.array([[0]])).tokens
    Array([[1, 2, 3]], dtype=int32)
    """
    check_chain(sample, length)
    snapshots.check_rewind(cache, draft.count + 1)
    snapshots.check_rewind(draft.cache, draft.count + 1)
    options = {"lengths": lengths, "stop": stop, "strings": strings, "limit": limit}
    return _speculate(read, cache, first, key, sample, length, draft, prompt, **options)


@compile_once
@auto_inside("first")
def _speculate(
    read, cache, first, key, sample, length, draft, prompt, *, lengths, stop, strings, limit
) -> Decoded:
    first = jnp.asarray(first)
    batch, keys = first.shape[0], request_keys(key, first.shape[0])
    first = jnp.asarray(first, jnp.int32)
    most = jnp.broadcast_to(jnp.asarray(length if limit is None else limit, jnp.int32), batch)
    most = jnp.minimum(most, length)
    stops = jnp.atleast_2d(jnp.asarray(NO_STOP if stop is None else stop, jnp.int32))
    history = initial_history(sample, batch, length, prompt, lengths, requires="tokens")
    assert history is not None
    rules = _StopRules(stops, strings, most)

    def body(state: _LoopState) -> _LoopState:
        draws = jax.vmap(jax.random.fold_in)(keys, state.history.num_generated)
        guess = draft.guess(state.token, state.history, state.draft, _fold(draws, 2))
        tokens = jnp.concatenate([jnp.maximum(state.token, 0)[:, None], guess.tokens], axis=1)
        logits, cache = read(tokens, state.cache)
        new, accepted = _verify(sample, state, logits, draws, guess, rules)
        back = jnp.where(state.done, draft.count + 1, draft.count - accepted)
        read_now = jnp.where(state.done, 0, draft.count)
        return new._replace(
            cache=snapshots.rewind(cache, back),
            draft=snapshots.rewind(guess.cache, back),
            guessed=state.guessed + read_now.astype(jnp.int32),
            accepted=state.accepted + accepted,
            steps=state.steps + 1,
        )

    blank = jnp.full((batch, length), NO_TOKEN, jnp.int32)
    stop_state = None if strings is None else strings.states(batch)
    done = most < 1 if stop_state is None else (most < 1) | has_stop_string(stop_state)
    zeros = (jnp.zeros_like(most), jnp.zeros_like(most), jnp.zeros((), jnp.int32))
    logprobs = jnp.zeros((batch, length), jnp.float32)
    caches = (cache, draft.cache)
    begin = _LoopState(first, blank, logprobs, *caches, history, stop_state, done, *zeros)
    state = while_loop(lambda state: ~jnp.all(state.done), body, begin)
    out = jnp.where(
        jnp.arange(length)[None] < state.history.num_generated[:, None],
        state.tokens,
        state.token[:, None],
    )
    last = jnp.any(state.token[:, None] == stops, axis=-1) & (state.history.num_generated > 0)
    reason = jnp.where(
        state.token == NOT_FINITE, Reason.NOT_FINITE, ended_by(state.stop_state, last)
    )
    return Decoded(
        *(out, state.history.num_generated, reason, state.logprobs),
        guessed=state.guessed,
        accepted=state.accepted,
        steps=state.steps,
    )


def _fold(keys: Key[Array, "B"], number: Int[Array, ""] | int) -> Key[Array, "B"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _verify(
    sample: Chain,
    state: _LoopState,
    logits: Float[Array, "B T V"],
    draws: Key[Array, "B"],
    guess: Guess,
    rules: _StopRules,
) -> tuple[_LoopState, Int[Array, "B"]]:
    """Return the state after the accepted guesses and one token more, and how many they are."""
    count = guess.tokens.shape[1]
    tokens = jnp.pad(guess.tokens, ((0, 0), (0, 1)))
    probs = guess.probs
    if probs is None:
        probs = jax.nn.one_hot(guess.tokens, logits.shape[-1], dtype=jnp.float32)
    # Past the last guess nothing is drafted, so the target draws from its whole distribution.
    probs = jnp.pad(probs, ((0, 0), (0, 1), (0, 0)))

    def one(i, carry):
        now, accepted, going = carry
        at = (logits[:, i], tokens[:, i], probs[:, i])
        new, accept = _accept_or_resample(sample, now.history, *at, _fold(_fold(draws, 1), i))
        accept &= i < count
        new = jnp.where(going, new, now.token)
        now = _append(sample, now, new, logits[:, i], going)
        over = jnp.any(new[:, None] == rules.stops, axis=-1) | (new == NOT_FINITE)
        if rules.strings is not None and now.stop_state is not None:
            stop_state = jnp.where(
                going, rules.strings.advance(now.stop_state, new), now.stop_state
            )
            now, over = now._replace(stop_state=stop_state), over | has_stop_string(stop_state)
        over = going & (over | (now.history.num_generated >= rules.limit))
        now = now._replace(done=now.done | over)
        accepted = accepted + (going & accept).astype(accepted.dtype)
        return now, accepted, going & accept & ~over

    begin = (state, jnp.zeros_like(rules.limit), ~state.done)
    return fori_loop(0, count + 1, one, begin)[:2]


def _accept_or_resample(
    sample: Chain,
    history: History,
    logits: Float[Array, "B V"],
    token: Int[Array, "B"],
    drafted: Float[Array, "B V"],
    keys: Key[Array, "B"],
) -> tuple[Int[Array, "B"], Array]:
    """Return the token at one position, and whether it is the guess."""
    logits = logits.astype(jnp.float32)
    target = sample.process(logits, history)
    probs = jax.nn.softmax(target, axis=-1)
    chance = jnp.take_along_axis(probs, token[:, None], axis=1)[:, 0]
    offered = jnp.take_along_axis(drafted, token[:, None], axis=1)[:, 0]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(_fold(keys, 0))
    accept = uniform * offered < chance
    accept &= offered > 0
    rest = jnp.maximum(probs - drafted, 0.0)
    # Nothing is left where both are equal, up to rounding: then the guess is always accepted.
    rest = jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), rest, probs)
    other = categorical(_fold(keys, 1), jnp.log(rest))
    new = jnp.where(accept, token, other)
    return mark_not_finite(mark_not_finite(new, target), logits), accept


def _append(
    sample: Chain, state: _LoopState, new: Int[Array, "B"], logits: Array, going: Array
) -> _LoopState:
    """Return the state after one more token of the rows in `going`."""
    after = append_token(sample, state.history, new)

    def select(fresh, old):
        return jnp.where(going.reshape(-1, *(1,) * (fresh.ndim - 1)), fresh, old)

    rows = jnp.arange(new.shape[0])
    position = jnp.where(going, state.history.num_generated, state.tokens.shape[1])
    tokens = state.tokens.at[rows, position].set(new, mode="drop")
    logprobs = state.logprobs.at[rows, position].set(logprob_of(new, logits), mode="drop")
    history = jax.tree.map(select, after, state.history)
    return state._replace(token=new, tokens=tokens, logprobs=logprobs, history=history)

"""Speculative decoding: a draft guesses some tokens, the target reads them all in one step.

What comes out is distributed exactly as the target's own draws (Leviathan et al. 2023; Chen et al.
2023), and greedy decoding is token for token the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding import cache_rows
from jaxgen.decoding.chain import NOT_FINITE, Chain, check_chain, checked, initial_history, missing
from jaxgen.decoding.detailed import Decoded, logprob_of
from jaxgen.decoding.history import (
    NO_TOKEN,
    History,
    append_token,
    last_tokens,
    required_history,
)
from jaxgen.decoding.loop import LOOP, NO_STOP, Count, Keys, Step, Stops, request_keys
from jaxgen.decoding.stop import Reason, StopStrings, ended_by, found
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.ops.random import categorical
from jaxgen.pytree import register_dataclass
from jaxgen.varying import fori_loop, scan, while_loop

# (tokens [B, T], cache) -> (logits [B, T, V], cache)
MultiTokenStep = Callable[[Any, Any], tuple[Any, Any]]


class Guess(NamedTuple):
    """Guessed tokens [B, G], and the distribution each was drawn from; None: guessed for certain.

    cache: the draft's, which has read the last known token and all guesses.
    """

    tokens: Int[Array, "B G"]
    probs: Float[Array, "B G V"] | None
    cache: Any


@register_dataclass
@dataclass(frozen=True)
class Draft:
    """A drafter: guess(last token [B], history, cache, keys [B]) -> Guess of `count` tokens."""

    guess: Callable[[Any, History, Any, Any], Guess]
    count: int = field(metadata={"static": True})
    cache: Any


@arguments.checked(count=at_least(1))
def draft_model(step: Step, cache: Any, sample: Chain, count: int) -> Draft:
    """Return the draft that draws `count` tokens from any other step: a small model, an n-gram.

    sample: its processors shape the draft's distribution, and may read nothing but logits; the
    closer that is to the target's, the more is accepted. The cache has a row for each request, and
    all but its last known token. Raises ConfigError for processors that look back.
    """
    if required_history(sample) != "nothing":
        raise ConfigError(f"a draft's chain reads logits alone; {missing(sample)}")
    return Draft(_ModelGuess(step, sample, count), count, cache)


@register_dataclass
@dataclass(frozen=True)
class _ModelGuess:
    step: Step
    sample: Chain
    count: int = field(metadata={"static": True})

    def __call__(self, token: Any, history: History, cache: Any, keys: Any) -> Guess:
        def one(carry, place):
            token, cache = carry
            logits, cache = self.step(jnp.maximum(token, 0), cache)
            logits = self.sample.process(logits.astype(jnp.float32))
            draw = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
            new = categorical(draw, logits)
            return (new, cache), (new, jax.nn.softmax(logits, axis=-1), take_snapshot(cache))

        take_snapshot = cache_rows.snapshot_function(cache)
        begun = take_snapshot(cache)
        out = scan(one, (token, cache), jnp.arange(self.count + 1))
        # The last guess is drawn only so that its forerunner is read; it is not made.
        (_, cache), (tokens, probs, states) = out
        cache = cache_rows.with_snapshots(cache, begun, states)
        return Guess(tokens[:-1].T, jnp.moveaxis(probs[:-1], 0, 1), cache)


@arguments.checked(count=at_least(1), width=at_least(1))
def lookup(count: int, *, width: int = 2) -> Draft:
    """Return the draft that copies what followed the last `width` (or fewer) tokens before.

    Prompt lookup (Saxena 2023): it costs nothing, and guesses well where a text quotes itself.
    """
    return Draft(_Lookup(count, width), count, ())


@register_dataclass
@dataclass(frozen=True)
class _Lookup:
    count: int = field(metadata={"static": True})
    width: int = field(metadata={"static": True})

    def __call__(self, token: Any, history: History, cache: Any, keys: Any) -> Guess:
        tokens, length = history.tokens_and_length()
        slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        begin = jnp.zeros(length.shape, jnp.int32)
        for size in range(1, self.width + 1):
            ending = last_tokens(history, size)
            same = slots + size < length[:, None]
            for place in range(size):
                same &= jnp.roll(tokens, -place, axis=1) == ending[:, place, None]
            latest = jnp.max(jnp.where(same, slots + size, 0), axis=1)
            begin = jnp.where(latest > 0, latest, begin)  # a longer match overrules
        where = jnp.minimum(begin[:, None] + jnp.arange(self.count)[None], length[:, None] - 1)
        copied = jnp.take_along_axis(tokens, jnp.maximum(where, 0), axis=1)
        return Guess(jnp.maximum(copied, 0), None, cache)


@arguments.checked
def reader(step: Step) -> MultiTokenStep:
    """Return any step as a reader of several tokens, one after the other: exact, but no faster."""
    return _TokenByToken(step)


@register_dataclass
@dataclass(frozen=True)
class _TokenByToken:
    step: Step

    def __call__(self, tokens: Int[Array, "B T"], cache: Any) -> tuple[Array, Any]:
        take_snapshot = cache_rows.snapshot_function(cache)
        begun = take_snapshot(cache)

        def one(cache, token):
            logits, cache = self.step(token, cache)
            return cache, (logits, take_snapshot(cache))

        cache, (logits, states) = scan(one, cache, tokens.T)
        return jnp.moveaxis(logits, 0, 1), cache_rows.with_snapshots(cache, begun, states)


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


class _Ends(NamedTuple):
    stops: Array
    strings: StopStrings | None
    most: Array  # [B]: new tokens


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
    """Return up to `length` new tokens a request, distributed as `decode` draws them.

    read: (tokens [B, T], cache) -> (logits [B, T, V], cache), the target; its cache and the draft's
      can be rewound (see `cache_rows.rewind`) and have draft.count + 1 slots more than the text
      needs.
    The other arguments are those of `decode`; the draws are others than `decode`'s, but a request's
    own as well: they are a function of its key and place. A row without a token to draw counts
    as not finite.
    Raises ConfigError for a cache that can't go back so far, and what `decode` raises.
    """
    check_chain(sample, length)
    cache_rows.check_back(cache, draft.count + 1)
    cache_rows.check_back(draft.cache, draft.count + 1)
    given = {"lengths": lengths, "stop": stop, "strings": strings, "limit": limit}
    return _speculate(read, cache, first, key, sample, length, draft, prompt, **given)


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
    ends = _Ends(stops, strings, most)

    def body(state: _LoopState) -> _LoopState:
        draws = jax.vmap(jax.random.fold_in)(keys, state.history.num_generated)
        guess = draft.guess(state.token, state.history, state.draft, _fold(draws, 2))
        asked = jnp.concatenate([jnp.maximum(state.token, 0)[:, None], guess.tokens], axis=1)
        logits, cache = read(asked, state.cache)
        now, taken = _verified(sample, state, logits, draws, guess, ends)
        back = jnp.where(state.done, draft.count + 1, draft.count - taken)
        fed = jnp.where(state.done, 0, draft.count)
        return now._replace(
            cache=cache_rows.rewind(cache, back),
            draft=cache_rows.rewind(guess.cache, back),
            guessed=state.guessed + fed.astype(jnp.int32),
            accepted=state.accepted + taken,
            steps=state.steps + 1,
        )

    blank = jnp.full((batch, length), NO_TOKEN, jnp.int32)
    stop_state = None if strings is None else strings.states(batch)
    done = most < 1 if stop_state is None else (most < 1) | found(stop_state)
    zeros = (jnp.zeros_like(most), jnp.zeros_like(most), jnp.zeros((), jnp.int32))
    logprobs = jnp.zeros((batch, length))
    caches = (cache, draft.cache)
    begun = _LoopState(first, blank, logprobs, *caches, history, stop_state, done, *zeros)
    state = while_loop(lambda state: ~jnp.all(state.done), body, begun)
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


def _verified(
    sample: Chain,
    state: _LoopState,
    logits: Float[Array, "B T V"],
    draws: Key[Array, "B"],
    guess: Guess,
    ends: _Ends,
) -> tuple[_LoopState, Int[Array, "B"]]:
    """The run after the guesses that are taken and one token more, and how many were taken."""
    count = guess.tokens.shape[1]
    tokens = jnp.pad(guess.tokens, ((0, 0), (0, 1)))
    probs = guess.probs
    if probs is None:
        probs = jax.nn.one_hot(guess.tokens, logits.shape[-1], dtype=jnp.float32)
    # Past the last guess nothing is drafted: what is left for the target's own draw is everything.
    probs = jnp.pad(probs, ((0, 0), (0, 1), (0, 0)))

    def one(place, carry):
        now, taken, going = carry
        at = (logits[:, place], tokens[:, place], probs[:, place])
        new, took = _drawn(sample, now.history, *at, _fold(_fold(draws, 1), place))
        took &= place < count
        new = jnp.where(going, new, now.token)
        now = _written(sample, now, new, logits[:, place], going)
        over = jnp.any(new[:, None] == ends.stops, axis=-1) | (new == NOT_FINITE)
        if ends.strings is not None and now.stop_state is not None:
            stop_state = jnp.where(going, ends.strings.advance(now.stop_state, new), now.stop_state)
            now, over = now._replace(stop_state=stop_state), over | found(stop_state)
        over = going & (over | (now.history.num_generated >= ends.most))
        now = now._replace(done=now.done | over)
        return now, taken + (going & took).astype(taken.dtype), going & took & ~over

    begun = (state, jnp.zeros_like(ends.most), ~state.done)
    return fori_loop(0, count + 1, one, begun)[:2]


def _drawn(
    sample: Chain,
    history: History,
    logits: Float[Array, "B V"],
    token: Int[Array, "B"],
    drafted: Float[Array, "B V"],
    keys: Key[Array, "B"],
) -> tuple[Int[Array, "B"], Array]:
    """The token at one place, and whether it is the guess that was taken."""
    logits = logits.astype(jnp.float32)
    target = sample.process(logits, history)
    probs = jax.nn.softmax(target, axis=-1)
    chance = jnp.take_along_axis(probs, token[:, None], axis=1)[:, 0]
    offered = jnp.take_along_axis(drafted, token[:, None], axis=1)[:, 0]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(_fold(keys, 0))
    took = uniform * offered < chance
    took &= offered > 0
    rest = jnp.maximum(probs - drafted, 0.0)
    # Nothing is left where both are equal, up to rounding: then the guess is always taken.
    rest = jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), rest, probs)
    other = categorical(_fold(keys, 1), jnp.log(rest))
    new = jnp.where(took, token, other)
    return checked(checked(new, target), logits), took


def _written(
    sample: Chain, state: _LoopState, new: Int[Array, "B"], logits: Array, going: Array
) -> _LoopState:
    """The run after one more token of the rows that are going."""
    after = append_token(sample, state.history, new)

    def kept(fresh, old):
        return jnp.where(going.reshape(-1, *(1,) * (fresh.ndim - 1)), fresh, old)

    rows_ = jnp.arange(new.shape[0])
    place = jnp.where(going, state.history.num_generated, state.tokens.shape[1])
    tokens = state.tokens.at[rows_, place].set(new, mode="drop")
    logprobs = state.logprobs.at[rows_, place].set(logprob_of(new, logits), mode="drop")
    history = jax.tree.map(kept, after, state.history)
    return state._replace(token=new, tokens=tokens, logprobs=logprobs, history=history)

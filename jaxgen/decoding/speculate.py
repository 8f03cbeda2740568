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
from jaxgen.decoding import fits, rows
from jaxgen.decoding import past as pasts
from jaxgen.decoding.chain import NOT_FINITE, Chain, checked, missing
from jaxgen.decoding.detail import Reason, ended_by
from jaxgen.decoding.loop import LOOP, NO_STOP, Count, Keys, Step, Stops, request_keys
from jaxgen.decoding.past import NO_TOKEN, Past
from jaxgen.decoding.record import record
from jaxgen.decoding.stop import StopStrings, found
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.ops.random import categorical
from jaxgen.varying import fori_loop, scan, while_loop

# (tokens [B, T], cache) -> (logits [B, T, V], cache)
Reader = Callable[[Any, Any], tuple[Any, Any]]


class Guess(NamedTuple):
    """Guessed tokens [B, G], and the distribution each was drawn from; None: guessed for certain.

    cache: the draft's, which has read the last known token and all guesses.
    """

    tokens: Int[Array, "B G"]
    probs: Float[Array, "B G V"] | None
    cache: Any


@record
@dataclass(frozen=True)
class Draft:
    """A way to guess: guess(last token [B], past, cache, keys [B]) -> Guess of `count` tokens."""

    guess: Callable[[Any, Past, Any, Any], Guess]
    count: int = field(metadata={"static": True})
    cache: Any


class Speculated(NamedTuple):
    """What speculation made; past its end a row repeats its last token."""

    tokens: Int[Array, "B length"]
    made: Int[Array, "B"]
    guessed: Int[Array, "B"]  # guesses that the target was asked about
    accepted: Int[Array, "B"]  # guesses that it took
    steps: Int[Array, ""]  # how often the target was run
    reason: Int[Array, "B"]  # a Reason; a row without a token to draw counts as not finite


@arguments.checked(count=at_least(1))
def draft_model(step: Step, cache: Any, sample: Chain, count: int) -> Draft:
    """Return the draft that draws `count` tokens from any other step: a small model, an n-gram.

    sample: its processors shape the draft's distribution, and may read nothing but logits; the
    closer that is to the target's, the more is accepted. The cache has a row for each request, and
    all but its last known token. Raises ConfigError for processors that look back.
    """
    if pasts.needs(sample) != "nothing":
        raise ConfigError(f"a draft's chain reads logits alone; {missing(sample)}")
    return Draft(_ModelGuess(step, sample, count), count, cache)


@record
@dataclass(frozen=True)
class _ModelGuess:
    step: Step
    sample: Chain
    count: int = field(metadata={"static": True})

    def __call__(self, token: Any, past: Past, cache: Any, keys: Any) -> Guess:
        def one(carry, place):
            token, cache = carry
            logits, cache = self.step(jnp.maximum(token, 0), cache)
            logits = self.sample.process(logits.astype(jnp.float32))
            draw = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
            new = categorical(draw, logits)
            return (new, cache), (new, jax.nn.softmax(logits, axis=-1), trail(cache))

        trail = rows.trail_of(cache)
        begun = trail(cache)
        made = scan(one, (token, cache), jnp.arange(self.count + 1))
        # The last guess is drawn only so that its forerunner is read; it is not made.
        (_, cache), (tokens, probs, states) = made
        cache = rows.trailed(cache, begun, states)
        return Guess(tokens[:-1].T, jnp.moveaxis(probs[:-1], 0, 1), cache)


@arguments.checked(count=at_least(1), width=at_least(1))
def lookup(count: int, *, width: int = 2) -> Draft:
    """Return the draft that copies what followed the last `width` (or fewer) tokens before.

    Prompt lookup (Saxena 2023): it costs nothing, and guesses well where a text quotes itself.
    """
    return Draft(_Lookup(count, width), count, ())


@record
@dataclass(frozen=True)
class _Lookup:
    count: int = field(metadata={"static": True})
    width: int = field(metadata={"static": True})

    def __call__(self, token: Any, past: Past, cache: Any, keys: Any) -> Guess:
        tokens, length = past.known()
        slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        begin = jnp.zeros(length.shape, jnp.int32)
        for size in range(1, self.width + 1):
            ending = pasts.last(past, size)
            same = slots + size < length[:, None]
            for place in range(size):
                same &= jnp.roll(tokens, -place, axis=1) == ending[:, place, None]
            latest = jnp.max(jnp.where(same, slots + size, 0), axis=1)
            begin = jnp.where(latest > 0, latest, begin)  # a longer match overrules
        where = jnp.minimum(begin[:, None] + jnp.arange(self.count)[None], length[:, None] - 1)
        copied = jnp.take_along_axis(tokens, jnp.maximum(where, 0), axis=1)
        return Guess(jnp.maximum(copied, 0), None, cache)


@arguments.checked
def reader(step: Step) -> Reader:
    """Return any step as a reader of several tokens, one after the other: exact, but no faster."""
    return _Reader(step)


@record
@dataclass(frozen=True)
class _Reader:
    step: Step

    def __call__(self, tokens: Int[Array, "B T"], cache: Any) -> tuple[Array, Any]:
        trail = rows.trail_of(cache)
        begun = trail(cache)

        def one(cache, token):
            logits, cache = self.step(token, cache)
            return cache, (logits, trail(cache))

        cache, (logits, states) = scan(one, cache, tokens.T)
        return jnp.moveaxis(logits, 0, 1), rows.trailed(cache, begun, states)


class _Run(NamedTuple):
    token: Array
    tokens: Array
    cache: Any
    draft: Any
    past: Past
    watched: Array | None  # where texts stand among their stop strings
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
    read: Reader,
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
) -> Speculated:
    """Return up to `length` new tokens a request, distributed as `decode` draws them.

    read: (tokens [B, T], cache) -> (logits [B, T, V], cache), the target; its cache and the draft's
      can be rewound (see `rows.rewind`) and have draft.count + 1 slots more than the text needs.
    The other arguments are those of `decode`; the draws are others than `decode`'s, but a request's
    own as well: they are a function of its key and place.
    Raises ConfigError for a cache that can't go back so far, and what `decode` raises.
    """
    fits.check(sample, length)
    rows.check_back(cache, draft.count + 1)
    rows.check_back(draft.cache, draft.count + 1)
    given = {"lengths": lengths, "stop": stop, "strings": strings, "limit": limit}
    return _speculate(read, cache, first, key, sample, length, draft, prompt, **given)


@compile_once
@auto_inside("first")
def _speculate(
    read, cache, first, key, sample, length, draft, prompt, *, lengths, stop, strings, limit
) -> Speculated:
    first = jnp.asarray(first)
    batch, keys = first.shape[0], request_keys(key, first.shape[0])
    first = jnp.asarray(first, jnp.int32)
    most = jnp.broadcast_to(jnp.asarray(length if limit is None else limit, jnp.int32), batch)
    most = jnp.minimum(most, length)
    stops = jnp.atleast_2d(jnp.asarray(NO_STOP if stop is None else stop, jnp.int32))
    past = _past(sample, prompt, lengths, length)
    ends = _Ends(stops, strings, most)

    def body(run: _Run) -> _Run:
        draws = jax.vmap(jax.random.fold_in)(keys, run.past.made)
        guess = draft.guess(run.token, run.past, run.draft, _fold(draws, 2))
        asked = jnp.concatenate([jnp.maximum(run.token, 0)[:, None], guess.tokens], axis=1)
        logits, cache = read(asked, run.cache)
        now, taken = _verified(sample, run, logits, draws, guess, ends)
        back = jnp.where(run.done, draft.count + 1, draft.count - taken)
        fed = jnp.where(run.done, 0, draft.count)
        return now._replace(
            cache=rows.rewind(cache, back),
            draft=rows.rewind(guess.cache, back),
            guessed=run.guessed + fed.astype(jnp.int32),
            accepted=run.accepted + taken,
            steps=run.steps + 1,
        )

    blank = jnp.full((batch, length), NO_TOKEN, jnp.int32)
    watched = None if strings is None else strings.states(batch)
    done = most < 1 if watched is None else (most < 1) | found(watched)
    zeros = (jnp.zeros_like(most), jnp.zeros_like(most), jnp.zeros((), jnp.int32))
    begun = _Run(first, blank, cache, draft.cache, past, watched, done, *zeros)
    run = while_loop(lambda run: ~jnp.all(run.done), body, begun)
    out = jnp.where(
        jnp.arange(length)[None] < run.past.made[:, None], run.tokens, run.token[:, None]
    )
    last = jnp.any(run.token[:, None] == stops, axis=-1) & (run.past.made > 0)
    reason = jnp.where(run.token == NOT_FINITE, Reason.NOT_FINITE, ended_by(run.watched, last))
    return Speculated(out, run.past.made, run.guessed, run.accepted, run.steps, reason)


def _past(sample: Chain, prompt: Any, lengths: Any, length: int) -> Past:
    batch = prompt.shape[0]
    known = jnp.full(batch, prompt.shape[1]) if lengths is None else jnp.asarray(lengths)
    room = jnp.full((batch, length), NO_TOKEN, jnp.int32)
    tokens = jnp.concatenate([jnp.asarray(prompt, jnp.int32), room], axis=1)
    past = Past(jnp.zeros(batch, jnp.int32), tokens, known.astype(jnp.int32))
    return pasts.begin(sample, past)


def _fold(keys: Key[Array, "B"], number: Int[Array, ""] | int) -> Key[Array, "B"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _verified(
    sample: Chain,
    run: _Run,
    logits: Float[Array, "B T V"],
    draws: Key[Array, "B"],
    guess: Guess,
    ends: _Ends,
) -> tuple[_Run, Int[Array, "B"]]:
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
        new, took = _drawn(sample, now.past, *at, _fold(_fold(draws, 1), place))
        took &= place < count
        new = jnp.where(going, new, now.token)
        now = _written(sample, now, new, going)
        over = jnp.any(new[:, None] == ends.stops, axis=-1) | (new == NOT_FINITE)
        if ends.strings is not None and now.watched is not None:
            watched = jnp.where(going, ends.strings.advance(now.watched, new), now.watched)
            now, over = now._replace(watched=watched), over | found(watched)
        over = going & (over | (now.past.made >= ends.most))
        now = now._replace(done=now.done | over)
        return now, taken + (going & took).astype(taken.dtype), going & took & ~over

    begun = (run, jnp.zeros_like(ends.most), ~run.done)
    return fori_loop(0, count + 1, one, begun)[:2]


def _drawn(
    sample: Chain,
    past: Past,
    logits: Float[Array, "B V"],
    token: Int[Array, "B"],
    drafted: Float[Array, "B V"],
    keys: Key[Array, "B"],
) -> tuple[Int[Array, "B"], Array]:
    """The token at one place, and whether it is the guess that was taken."""
    logits = logits.astype(jnp.float32)
    target = sample.process(logits, past)
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


def _written(sample: Chain, run: _Run, new: Int[Array, "B"], going: Array) -> _Run:
    """The run after one more token of the rows that are going."""
    after = pasts.advance(sample, run.past, new)

    def kept(fresh, old):
        return jnp.where(going.reshape(-1, *(1,) * (fresh.ndim - 1)), fresh, old)

    rows_ = jnp.arange(new.shape[0])
    place = jnp.where(going, run.past.made, run.tokens.shape[1])
    tokens = run.tokens.at[rows_, place].set(new, mode="drop")
    past = jax.tree.map(kept, after, run.past)
    return run._replace(token=new, tokens=tokens, past=past)

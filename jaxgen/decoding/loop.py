"""Autoregressive decoding as one compiled loop, for anything with a `step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, PRNGKeyArray

from jaxgen import arguments
from jaxgen.arguments import at_least, between
from jaxgen.decoding import past as pasts
from jaxgen.decoding.chain import NOT_FINITE, checked, missing, sampler
from jaxgen.decoding.past import NO_TOKEN, Past
from jaxgen.decoding.stop import StopStrings, found
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.export import Size
from jaxgen.mesh.explicit import auto_inside, with_cache
from jaxgen.varying import while_loop

CacheT = TypeVar("CacheT")
Step = Callable[[Int[Array, "B"], CacheT], tuple[Float[Array, "B V"], CacheT]]
Sample = Callable[..., Int[Array, "B"]]  # (logits [B, V], keys [B]), and a Past if it `needs` one

NO_STOP = np.full(1, NO_TOKEN, np.int32)
Keys = PRNGKeyArray | Key[Array, "B"]  # one key, or one per request
Stops = Int[Array, "E"] | Int[Array, "B E"] | np.ndarray
Count = Int[Array, "B"] | Int[Array, ""] | np.ndarray | int


# What the arguments of every loop over tokens may hold; a `step` does not tell its vocabulary.
LOOP = {
    "first": at_least(0, also=(NOT_FINITE,)),
    "sample": sampler,
    "length": at_least(1),
    "stop": at_least(0, also=(NO_TOKEN,)),
    "start": at_least(0),
    "limit": at_least(0),
    "prompt": at_least(0, also=(NO_TOKEN,), real="lengths"),
    "lengths": between(1, "S"),
}


def request_keys(key: Keys, batch: Size) -> Key[Array, "B"]:
    """Return one key per request: `key` folded with the row, or `key` itself if it is [B].

    Keys of the old style, uint32 [2] from jax.random.PRNGKey, count as one key.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 1:
        return key
    return jax.vmap(lambda request: jax.random.fold_in(key, request))(jnp.arange(batch))


@arguments.checked(**LOOP)
def decode(
    step: Step,
    cache: Any,
    first: Integer[Array | np.ndarray, "B"],
    key: Keys,
    sample: Sample,
    length: int,
    *,
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    start: Int[Array, ""] | int = 0,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> tuple[Int[Array, "B length"], Any]:
    """Return (tokens, cache): `length` new tokens per request, in one loop that ends early.

    step: (tokens [B], cache) -> (logits [B, V], cache); all that decoding knows of a model.
    first: each request's last known token, not yet in the cache.
    key: one key, or one per request [B]; the draw at place i of a request uses
      fold_in(request key, start + i), so neighbours in the batch change nothing.
    stop: ids that end a request, [E] or [B, E] (padded with NO_TOKEN); a finished row repeats
      its last token.
    strings: `stop_strings`; a request ends with the token that completes one of its own.
    start: place of the first new token, to continue a request in chunks.
    limit: the most new tokens of a request, scalar or [B], counted from place 0.
    prompt: all known ids [B, S] up to `first`, padded on the right, `lengths` [B] of them real;
      their last `start` are draws. Only processors that look back read it: ConfigError if one
      does and there is none.
    A row whose logits hold NaN, or nothing but -inf, yields NOT_FINITE (-1) and ends: never a
    token made of rubbish.
    """
    given = {"stop": stop, "strings": strings, "start": start, "limit": limit}
    given |= {"prompt": prompt, "lengths": lengths}
    return decode_chunk(step, cache, first, key, sample, length, **given)[:2]


class Chunk(NamedTuple):
    """Some new tokens of requests that may go on."""

    tokens: Int[Array, "B length"]
    cache: Any
    strings: StopStrings | None  # where the texts stand now: give it to the next chunk
    done: Bool[Array, "B"]


@arguments.checked(**LOOP)
@compile_once
@auto_inside("first", with_cache)
def decode_chunk(
    step: Step,
    cache: Any,
    first: Integer[Array | np.ndarray, "B"],
    key: Keys,
    sample: Sample,
    length: int,
    *,
    stop: Stops | None = None,
    strings: StopStrings | None = None,
    start: Int[Array, ""] | int = 0,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> Chunk:
    """Return what `decode` makes of the same arguments, and what the next chunk begins with.

    A chunk may have a lower `limit` than the one before, which ends rows: their time is over.
    """
    plan = plan_of(sample, first, key, length, stop, strings, start, limit, prompt, lengths)
    run = loop(step, cache, plan, ())
    after = None if strings is None else strings.at(run.watched)
    return Chunk(run.tokens, run.cache, after, run.done)


class Plan(NamedTuple):
    """What the loop is told, in the form that it uses."""

    sample: Any
    length: int
    first: Int[Array, "B"]
    keys: Key[Array, "B"]
    stops: Any
    strings: StopStrings | None
    start: Any
    limit: Any
    history: Past | None

    @property
    def watched(self) -> Int[Array, "B"] | None:
        """Return where texts stand among their stop strings, if there are any."""
        return None if self.strings is None else self.strings.states(self.first.shape[0])

    def watch(self, watched: Any, token: Int[Array, "B"], done: Bool[Array, "B"]) -> Any:
        """Return where texts stand after `token`; those that are done stay where they are."""
        if self.strings is None:
            return None
        return jnp.where(done, watched, self.strings.advance(watched, token))

    def ends(self, token: Int[Array, "B"], made: Any, watched: Any) -> Bool[Array, "B"]:
        """Return which requests end with `token`, their last of `made` new ones."""
        ended = self.stopped(token) | (token == NOT_FINITE) | self.spent(made)
        return ended if watched is None else ended | found(watched)

    def stopped(self, token: Int[Array, "B"]) -> Bool[Array, "B"]:
        """Return which tokens are stop ids of their request."""
        return jnp.any(token[:, None] == jnp.atleast_2d(self.stops), axis=-1)

    def spent(self, made: Any) -> Bool[Array, "B"]:
        """Return which requests have no new token left."""
        if self.limit is None:
            return jnp.zeros(self.first.shape, bool)
        return jnp.broadcast_to(made >= jnp.asarray(self.limit), self.first.shape)


def plan_of(sample, first, key, length, stop, strings, start, limit, prompt, lengths) -> Plan:
    """Return the Plan for `decode`'s arguments; ConfigError if they lack a prompt."""
    needs, history = pasts.needs(sample), None
    first = jnp.asarray(first)
    if needs == "tokens":
        if prompt is None:
            raise ConfigError(missing(sample))
        prompt = jnp.asarray(prompt, jnp.int32)
        room = jnp.full((prompt.shape[0], length), NO_TOKEN, jnp.int32)
        known = jnp.full(prompt.shape[0], prompt.shape[1]) if lengths is None else lengths
        made = jnp.broadcast_to(jnp.asarray(start, jnp.int32), first.shape)
        tokens = jnp.concatenate([prompt, room], axis=1)
        history = pasts.begin(sample, Past(made, tokens, jnp.asarray(known, jnp.int32)))
    elif needs == "made":
        history = Past(jnp.broadcast_to(jnp.asarray(start, jnp.int32), first.shape))
    keys = request_keys(key, first.shape[0])
    stops = jnp.asarray(NO_STOP if stop is None else stop, jnp.int32)
    first = jnp.asarray(first, jnp.int32)  # the loop carries tokens of one type
    return Plan(sample, length, first, keys, stops, strings, start, limit, history)


class Run(NamedTuple):
    """The carry of the loop: everything that changes from place to place."""

    place: Array
    token: Array
    tokens: Array
    cache: Any
    done: Array
    past: Past | None  # if a processor reads it
    watched: Array | None  # where texts stand among their stop strings, if there are any
    record: Any


Observe = Callable[[Any, Run, Array, Array, Past | None], Any]


def loop(step: Step, cache: Any, plan: Plan, record: Any, observe: Observe | None = None) -> Run:
    """Return the finished loop; `observe` makes the next record from
    (record, run before the draw, logits, drawn token, past).
    """

    def going(run):
        return (run.place < plan.length) & ~jnp.all(run.done)

    def body(run):
        logits, cache = step(jnp.maximum(run.token, 0), run.cache)
        draw = jax.vmap(lambda k: jax.random.fold_in(k, plan.start + run.place))(plan.keys)
        past = run.past
        extra = () if past is None else (past,)
        new = checked(plan.sample(logits, draw, *extra), logits)
        new = jnp.where(run.done, run.token, new)
        record = run.record if observe is None else observe(run.record, run, logits, new, past)
        watched = plan.watch(run.watched, new, run.done)
        done = run.done | plan.ends(new, plan.start + run.place + 1, watched)
        tokens = run.tokens.at[:, run.place].set(new)
        past = None if past is None else pasts.advance(plan.sample, past, new)
        return Run(run.place + 1, new, tokens, cache, done, past, watched, record)

    first = plan.first
    # Rows may be done before they start: a chunked caller passes on a stop token.
    begun = jnp.asarray(plan.start) > 0
    done = plan.stopped(first) & begun | (first == NOT_FINITE) | plan.spent(plan.start)
    watched = plan.watched
    done = done if watched is None else done | found(watched)
    blank = jnp.broadcast_to(first[:, None], (first.shape[0], plan.length))
    zero = jnp.zeros((), jnp.int32)
    run = Run(zero, first, blank, cache, done, plan.history, watched, record)
    run = while_loop(going, body, run)
    tail = jnp.arange(plan.length) >= run.place
    return run._replace(tokens=jnp.where(tail, run.token[:, None], run.tokens))

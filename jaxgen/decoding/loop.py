"""Autoregressive decoding as one compiled loop, for anything with a `step`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, PRNGKeyArray

from jaxgen import arguments, arrays
from jaxgen.arguments import at_least, between
from jaxgen.decoding.chain import NOT_FINITE, initial_history, mark_not_finite, sampler
from jaxgen.decoding.history import NO_TOKEN, History, append_token, required_history
from jaxgen.decoding.read_ahead import num_tokens, put, read_ahead
from jaxgen.decoding.stop import StopStrings, has_stop_string
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.export import Size
from jaxgen.mesh.explicit import auto_inside, with_cache
from jaxgen.varying import while_loop

CacheT = TypeVar("CacheT")
Step = Callable[[Int[Array, "B"], CacheT], tuple[Float[Array, "B V"], CacheT]]
Sample = Callable[..., Int[Array, "B"]]  # (logits [B, V], keys [B]), a History if it `requires` one

NO_STOP = np.full(1, NO_TOKEN, np.int32)
Keys = PRNGKeyArray | Key[Array, "B"]  # one key, or one per request
Stops = Int[Array, "E"] | Int[Array, "B E"] | np.ndarray
Count = Int[Array, "B"] | Int[Array, ""] | np.ndarray | int


# Ranges of the arguments of all decoding loops; a `step` does not tell the size of its vocabulary.
def has_room(path: str, cache: Any, call: arguments.Call) -> None:
    """Raise ConfigError where a cache whose length is known ends before the new tokens do."""
    capacity, length = getattr(cache, "capacity", None), call.given.get("length")
    used = arrays.concrete(getattr(cache, "length", None))
    limit = arrays.concrete(call.given.get("limit"))
    if not isinstance(capacity, int) or not isinstance(length, int) or used is None:
        return
    if limit is not None:
        length = min(length, int(limit.max()))
    length += getattr(call.given.get("draft"), "count", 0)  # guesses are read before they are kept
    if used.size and int(used.max()) + length > capacity:
        raise ConfigError(
            f"{path} has {capacity} slots, of which {int(used.max())} are used: {length} new "
            f"tokens don't fit; prefill with capacity={int(used.max()) + length} or more"
        )


LOOP = {
    "cache": has_room,
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
    start: Count = 0,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
) -> tuple[Int[Array, "B length"], Any]:
    """Decode autoregressively, in one compiled loop that ends once all requests have ended.

    Args:
        step: (tokens [B], cache) -> (logits [B, V], cache), all that decoding knows of a model.
        cache: any pytree, after all tokens before `first`.
        first: last known token of each request [B].
        key: one key, or one per request [B]. The draw at position i of a request uses
            fold_in(request key, start + i), so it does not depend on the rest of the batch.
        sample: a `chain`, or (logits [B, V], keys [B]) -> tokens [B].
        length: number of new tokens, at least 1.
        stop: ids that end a request, [E], or [B, E] padded with NO_TOKEN (-2).
        strings: `stop_strings`; a request ends with the token that completes one of its own.
        start: position of the first new token, when requests are continued in chunks: scalar, or
            [B] where they began at different times.
        limit: maximum number of new tokens of a request, scalar or [B], counted from position 0.
        prompt: known ids [B, S] up to `first`, padded on the right; its last `start` are draws.
            Only processors that read earlier tokens need it.
        lengths: valid ids of the prompt [B], from 1 to S; None for all.

    Returns:
        (tokens [B, length], cache). A row that has ended repeats its last token; one whose logits
        are NaN or all -inf ends with NOT_FINITE (-1).

    Raises:
        ConfigError: for an argument out of range, or if a processor needs a prompt.

    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), cache)
    >>> jaxgen.decode(count, (), jnp.array([0]), jax.random.key(0), jaxgen.greedy(), 3)[0]
    Array([[1, 2, 3]], dtype=int32)
    """
    options = {"stop": stop, "strings": strings, "start": start, "limit": limit}
    options |= {"prompt": prompt, "lengths": lengths}
    return decode_chunk(step, cache, first, key, sample, length, **options)[:2]


class Chunk(NamedTuple):
    """New tokens of requests that may go on."""

    tokens: Int[Array, "B length"]
    cache: Any
    strings: StopStrings | None  # with the current states: an argument of the next chunk
    done: Bool[Array, "B"]
    states: tuple[Any, ...] = ()  # of the processors, likewise


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
    start: Count = 0,
    limit: Count | None = None,
    prompt: Integer[Array, "B S"] | np.ndarray | None = None,
    lengths: Int[Array, "B"] | np.ndarray | None = None,
    states: tuple[Any, ...] | None = None,
) -> Chunk:
    """Return what `decode` returns, and the arguments of the next chunk.

    A chunk may have a lower `limit` than the one before, which ends rows whose time is over.
    states: of the processors, as the chunk before returned them; None: they begin anew, and follow
    the `start` tokens that were drawn already.
    """
    about = (stop, strings, start, limit, prompt, lengths, states)
    spec = make_spec(sample, first, key, length, *about)
    state = loop(step, cache, spec, ())
    after = None if strings is None else strings.at(state.stop_state)
    return Chunk(state.tokens, state.cache, after, state.done, state.states)


class DecodeSpec(NamedTuple):
    """The arguments of `decode` as arrays, constant during the loop."""

    sample: Any
    length: int
    first: Int[Array, "B"]
    keys: Key[Array, "B"]
    stops: Any
    strings: StopStrings | None
    start: Any
    limit: Any
    history: History | None
    calls: Any = None  # of the step at most, if these are fewer than `length`

    @property
    def initial_stop_state(self) -> Int[Array, "B"] | None:
        """Return the initial state of the stop-string automata; None without stop strings."""
        return None if self.strings is None else self.strings.states(self.first.shape[0])

    def advance_stop_state(
        self, stop_state: Any, token: Int[Array, "B"], done: Bool[Array, "B"]
    ) -> Any:
        """Return the stop-string state after `token`; finished rows keep theirs."""
        if self.strings is None:
            return None
        return jnp.where(done, stop_state, self.strings.advance(stop_state, token))

    def ends(self, token: Int[Array, "B"], num_generated: Any, stop_state: Any) -> Bool[Array, "B"]:
        """Return which requests end with `token`, the last of `num_generated` new ones."""
        ended = self.is_stop(token) | (token == NOT_FINITE) | self.is_spent(num_generated)
        return ended if stop_state is None else ended | has_stop_string(stop_state)

    def is_stop(self, token: Int[Array, "B"]) -> Bool[Array, "B"]:
        """Return which tokens are stop ids of their request."""
        return jnp.any(token[:, None] == jnp.atleast_2d(self.stops), axis=-1)

    def is_spent(self, num_generated: Any) -> Bool[Array, "B"]:
        """Return which requests have reached their limit."""
        if self.limit is None:
            return jnp.zeros(self.first.shape, bool)
        return jnp.broadcast_to(num_generated >= jnp.asarray(self.limit), self.first.shape)


def make_spec(
    sample,
    first,
    key,
    length,
    stop,
    strings,
    start,
    limit,
    prompt,
    lengths,
    states=None,
    draft=None,
) -> DecodeSpec:
    """Return the DecodeSpec for `decode`'s arguments; ConfigError if they lack a prompt."""
    first = jnp.asarray(first)
    requires = required_history(sample) if draft is None else "tokens"
    about = {"start": start, "states": states, "requires": requires}
    room = num_tokens(length, draft)
    history = initial_history(sample, first.shape[0], room, prompt, lengths, **about)
    keys = request_keys(key, first.shape[0])
    stops = jnp.asarray(NO_STOP if stop is None else stop, jnp.int32)
    first = jnp.asarray(first, jnp.int32)  # the loop carries tokens of one type
    return DecodeSpec(sample, length, first, keys, stops, strings, start, limit, history)


def take_step(step: Step, tokens: Int[Array, "B"], cache: Any) -> tuple[Float[Array, "B V"], Any]:
    """Return (logits, cache) of a step; ConfigError, in one line, if it returns something else."""
    result = step(tokens, cache)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ConfigError(
            f"step returned a {type(result).__name__}; it must return (logits [B, V], cache)"
        )
    logits, after = result
    shape = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[0] != tokens.shape[0]:
        raise ConfigError(
            f"step returned logits of shape {list(shape)}; they must be [B, V] for "
            f"B={tokens.shape[0]} tokens"
        )
    if jax.tree.structure(after) != jax.tree.structure(cache):
        raise ConfigError(
            "step returned a cache of another tree structure than it was given; keep one structure"
        )
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        if jnp.shape(old) != jnp.shape(new) or jnp.result_type(old) != jnp.result_type(new):
            raise ConfigError(
                f"step made {jnp.result_type(new)}{list(jnp.shape(new))} of a leaf of its cache "
                f"that was {jnp.result_type(old)}{list(jnp.shape(old))}; keep shapes and dtypes"
            )
    return logits, after


class LoopState(NamedTuple):
    """The carry of the decoding loop.

    position: of the next token in `tokens`; [B] where guesses let rows get ahead of others.
    """

    position: Array
    token: Array
    tokens: Array
    cache: Any
    done: Array
    history: History | None  # if a processor requires it
    stop_state: Array | None  # of the stop-string automata, if there are any
    stats: Any
    calls: Array  # of the step

    @property
    def states(self) -> tuple[Any, ...]:
        """Return the states of the processors."""
        return () if self.history is None else self.history.states


Observe = Callable[[Any, LoopState, Array, Array, History | None], Any]


def loop(
    step: Any,
    cache: Any,
    spec: DecodeSpec,
    stats: Any,
    observe: Observe | None = None,
    draft: Any = None,
) -> LoopState:
    """Return the final state; `observe` updates its stats after each draw.

    observe: (stats, state before the draw, logits, new token, history) -> stats. draft: guesses
    tokens, which the step (tokens [B, T], cache) -> (logits [B, T, V], cache) reads ahead.
    """

    most = spec.length if spec.calls is None else jnp.minimum(spec.calls, spec.length)

    def going(state):
        return (state.calls < most) & ~jnp.all(state.done)

    def one_token(state):
        logits, cache = take_step(step, jnp.maximum(state.token, 0), state.cache)
        return draw(state, logits)._replace(cache=cache, calls=state.calls + 1)

    def draw(state, logits):
        number = jnp.broadcast_to(spec.start + state.position, spec.keys.shape)
        draw = jax.vmap(jax.random.fold_in)(spec.keys, number)
        history = state.history
        extra = () if history is None else (history,)
        new = mark_not_finite(spec.sample(logits, draw, *extra), logits)
        new = jnp.where(state.done, state.token, new)
        stats = (
            state.stats if observe is None else observe(state.stats, state, logits, new, history)
        )
        stop_state = spec.advance_stop_state(state.stop_state, new, state.done)
        done = state.done | spec.ends(new, spec.start + state.position + 1, stop_state)
        return state._replace(
            position=state.position + 1,
            token=new,
            tokens=put(state.tokens, state.position, new),
            done=done,
            history=None if history is None else append_token(spec.sample, history, new),
            stop_state=stop_state,
            stats=stats,
        )

    first = spec.first
    # A request of an earlier chunk may have ended with `first`.
    begun = jnp.asarray(spec.start) > 0
    done = spec.is_stop(first) & begun | (first == NOT_FINITE) | spec.is_spent(spec.start)
    stop_state = spec.initial_stop_state
    done = done if stop_state is None else done | has_stop_string(stop_state)
    blank = jnp.broadcast_to(first[:, None], (first.shape[0], num_tokens(spec.length, draft)))
    zero = jnp.zeros((), jnp.int32)
    position = zero if draft is None else jnp.zeros_like(first)
    state = LoopState(position, first, blank, cache, done, spec.history, stop_state, stats, zero)
    ahead = partial(read_ahead, step, draft, spec.keys, draw)
    state = while_loop(going, one_token if draft is None else ahead, state)
    tail = jnp.arange(blank.shape[1]) >= state.position[..., None]
    return state._replace(tokens=jnp.where(tail, state.token[:, None], state.tokens))

"""Autoregressive decoding as one compiled loop, for anything with a `step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

CacheT = TypeVar("CacheT")
Step = Callable[[Int[Array, "B"], CacheT], tuple[Float[Array, "B V"], CacheT]]
Sample = Callable[[Float[Array, "B V"], Key[Array, "B"]], Int[Array, "B"]]

NOT_FINITE = -1
NO_STOP = np.full(1, -2, np.int32)


Keys = PRNGKeyArray | Key[Array, "B"]  # one key, or one per request


def request_keys(key: Keys, batch: int) -> Key[Array, "B"]:
    """Return one key per request: `key` folded with the row, or `key` itself if it is [B].

    Keys of the old style, uint32 [2] from jax.random.PRNGKey, count as one key.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 1:
        return key
    return jax.vmap(lambda request: jax.random.fold_in(key, request))(jnp.arange(batch))


def decode(
    step: Step,
    cache: Any,
    first: Int[Array, "B"],
    key: Keys,
    sample: Sample,
    length: int,
    *,
    stop: Int[Array, "E"] | None = None,
    start: Int[Array, ""] | int = 0,
) -> tuple[Int[Array, "B length"], Any]:
    """Return (tokens, cache): `length` new tokens per request, in one loop that ends early.

    step: (tokens [B], cache) -> (logits [B, V], cache); all that decoding knows of a model.
    first: each request's last known token, not yet in the cache.
    key: one key, or one per request [B]; the draw at place i of a request uses
      fold_in(request key, start + i), so neighbours in the batch change nothing.
    stop: ids that end a request; a finished row repeats its last token.
    start: place of the first new token, to continue a request in chunks.
    A row whose logits hold NaN, or nothing but -inf, yields NOT_FINITE (-1) and ends: never a
    token made of rubbish.
    """
    keys = request_keys(key, first.shape[0])
    stops = jnp.asarray(NO_STOP if stop is None else stop)

    def going(carry):
        place, _, _, _, done = carry
        return (place < length) & ~jnp.all(done)

    def body(carry):
        place, token, tokens, cache, done = carry
        logits, cache = step(jnp.maximum(token, 0), cache)
        draw = jax.vmap(lambda k: jax.random.fold_in(k, start + place))(keys)
        new = _checked(sample(logits, draw), logits)
        new = jnp.where(done, token, new)
        done = done | jnp.isin(new, stops) | (new == NOT_FINITE)
        return place + 1, new, tokens.at[:, place].set(new), cache, done

    # Rows may be done before they start: a chunked caller passes on a stop token.
    done = jnp.isin(first, stops) & (jnp.asarray(start) > 0) | (first == NOT_FINITE)
    blank = jnp.broadcast_to(first[:, None], (first.shape[0], length))
    carry = (jnp.zeros((), jnp.int32), first, blank, cache, done)
    place, token, tokens, cache, _ = lax.while_loop(going, body, carry)
    tail = jnp.arange(length) >= place
    return jnp.where(tail, token[:, None], tokens), cache


def _checked(token, logits):
    usable = ~jnp.any(jnp.isnan(logits), -1) & jnp.any(jnp.isfinite(logits), -1)
    return jnp.where(usable, token, NOT_FINITE).astype(jnp.int32)

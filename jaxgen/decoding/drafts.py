"""Drafts of speculative decoding: another model, or the text itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding import snapshots
from jaxgen.decoding.chain import Chain, missing_prompt
from jaxgen.decoding.history import History, last_tokens, required_history
from jaxgen.decoding.loop import Step
from jaxgen.errors import ConfigError
from jaxgen.ops.random import categorical
from jaxgen.pytree import register_dataclass
from jaxgen.varying import scan


class Guess(NamedTuple):
    """Guessed tokens, and the distributions they were drawn from; None if they were not drawn.

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
    """Return the draft that draws tokens from another step: a small model, an n-gram.

    Args:
        step: (tokens [B], cache) -> (logits [B, V], cache), with the target's vocabulary.
        cache: with a row for each request, after all tokens but the last known one.
        sample: its processors shape the draft's distribution, and may read nothing but logits. The
            closer it is to the target's, the more guesses are accepted.
        count: number of guesses for each call of the target, at least 1.

    Raises:
        ConfigError: for a count below 1, or processors that read earlier tokens.

    >>> count = lambda tokens, cache: (jax.nn.one_hot(tokens + 1, 5), cache)
    >>> jaxgen.draft_model(count, (), jaxgen.greedy(), 4).count
    4
    """
    if required_history(sample) != "nothing":
        raise ConfigError(f"a draft's chain reads logits alone; {missing_prompt(sample)}")
    return Draft(_ModelGuess(step, sample, count), count, cache)


@register_dataclass
@dataclass(frozen=True)
class _ModelGuess:
    step: Step
    sample: Chain
    count: int = field(metadata={"static": True})

    def __call__(self, token: Any, history: History, cache: Any, keys: Any) -> Guess:
        def one(carry, i):
            token, cache = carry
            logits, cache = self.step(jnp.maximum(token, 0), cache)
            logits = self.sample.process(logits.astype(jnp.float32))
            draw = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
            new = categorical(draw, logits)
            return (new, cache), (new, jax.nn.softmax(logits, axis=-1), take_snapshot(cache))

        take_snapshot = snapshots.snapshot_function(cache)
        before = take_snapshot(cache)
        out = scan(one, (token, cache), jnp.arange(self.count + 1))
        # One more step makes the cache read the last guess; its own draw is dropped.
        (_, cache), (tokens, probs, states) = out
        cache = snapshots.with_snapshots(cache, before, states)
        return Guess(tokens[:-1].T, jnp.moveaxis(probs[:-1], 0, 1), cache)


@arguments.checked(count=at_least(1), width=at_least(1))
def lookup(count: int, *, width: int = 2) -> Draft:
    """Return the draft of prompt lookup: copy what followed the last tokens before (Saxena 2023).

    It costs nothing, and guesses well where a text quotes itself.

    Args:
        count: number of guesses for each call of the target, at least 1.
        width: number of last tokens that must match, at least 1; fewer where so many do not.
            Raises ConfigError below 1.

    >>> jaxgen.lookup(4).count
    4
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
            for i in range(size):
                same &= jnp.roll(tokens, -i, axis=1) == ending[:, i, None]
            latest = jnp.max(jnp.where(same, slots + size, 0), axis=1)
            begin = jnp.where(latest > 0, latest, begin)  # a longer match wins
        where = jnp.minimum(begin[:, None] + jnp.arange(self.count)[None], length[:, None] - 1)
        copied = jnp.take_along_axis(tokens, jnp.maximum(where, 0), axis=1)
        return Guess(jnp.maximum(copied, 0), None, cache)

"""Samplers: processors of logits, chained in reading order, then one draw.

Processors are pytrees whose settings are leaves, so changing a temperature does not recompile,
and a setting may be an array [B] with a value for each request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen.errors import ConfigError

BANNED = -jnp.inf


def _column(value, logits: Float[Array, "B V"]) -> Array:
    """A scalar or [B] setting as something that broadcasts against [B, V]."""
    value = jnp.asarray(value)
    return value[:, None] if value.ndim else value


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Temperature:
    """Divides logits by `value`; at 0 only the largest stays, which makes the draw greedy."""

    value: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        value = _column(self.value, logits)
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        greedy = jnp.where(jnp.arange(logits.shape[-1]) == best, logits, BANNED)
        return jnp.where(value > 0, logits / jnp.where(value > 0, value, 1.0), greedy)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopK:
    """Keeps the `count` largest logits and what equals the last of them (Fan et al. 2018)."""

    count: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        count = jnp.clip(_column(self.count, logits), 1, logits.shape[-1])
        ordered = jnp.sort(logits, axis=-1, descending=True)
        index = jnp.broadcast_to(count - 1, (*logits.shape[:-1], 1))
        return jnp.where(logits >= jnp.take_along_axis(ordered, index, -1), logits, BANNED)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopP:
    """Keeps the smallest set of likeliest tokens that reaches `mass` (Holtzman et al. 2020)."""

    mass: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        mass = _column(self.mass, logits)
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        # A token stays while those before it have not reached the mass; the first always does.
        kept = (before < mass).at[..., 0].set(True)
        rank = jnp.argsort(order, axis=-1)
        return jnp.where(jnp.take_along_axis(kept, rank, -1), logits, BANNED)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """Processors in reading order; calling it draws one token per row."""

    processors: tuple[Any, ...]

    def process(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Return the logits after all processors; -inf marks what can't be drawn."""
        for processor in self.processors:
            logits = processor(logits)
        return logits

    def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, "B"]) -> Int[Array, "B"]:
        """Return one draw per row from softmax(process(logits)), each row with its own key."""
        logits = self.process(logits.astype(jnp.float32))
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def chain(*processors: Any) -> Chain:
    """Return a sampler that applies `processors` in the order written, then draws."""
    return Chain(tuple(processors))


def greedy() -> Chain:
    """Return the sampler that takes the likeliest token, the first of equals."""
    return chain(temperature(0.0))


def temperature(value: Any) -> Temperature:
    """Return a processor that divides logits by `value` (scalar or [B]); 0 is greedy.

    Raises ConfigError for a negative or non-finite number.
    """
    if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
        raise ConfigError(f"temperature={value} must be a finite number, 0 (greedy) or more")
    return Temperature(value)


def top_k(count: Any) -> TopK:
    """Return a processor that keeps the `count` (int or [B]) likeliest; ConfigError below 1."""
    if isinstance(count, (int, float)) and (count != int(count) or count < 1):
        raise ConfigError(f"top_k={count} must be a whole number, 1 or more")
    return TopK(count)


def top_p(mass: Any) -> TopP:
    """Return a nucleus processor of `mass` (scalar or [B]); ConfigError outside (0, 1]."""
    if isinstance(mass, (int, float)) and not 0 < mass <= 1:
        raise ConfigError(f"top_p={mass} must be greater than 0 and at most 1")
    return TopP(mass)

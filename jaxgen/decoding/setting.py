"""Settings of processors: numbers or arrays [B], checked on the host where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxgen.decoding.past import NO_TOKEN
from jaxgen.errors import ConfigError


def column(value: Any) -> Array:
    """Return a scalar or [B] setting as something that broadcasts against [B, V]."""
    value = jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating):  # 64 bits with jax_enable_x64
        value = value.astype(jnp.float32)
    return value[:, None] if value.ndim else value


def checked(name: str, value: Any, allowed: Callable[[Any], Any], rule: str) -> Any:
    """Return `value`; ConfigError `name=value rule` if a host number in it is not allowed.

    Arrays on a device are taken as they are: looking at them would wait for the device.
    """
    if isinstance(value, (bool, int, float, np.ndarray, np.generic, list, tuple)):
        numbers = np.asarray(value)
        kind = numbers.dtype.kind
        if kind not in "iuf" or not np.all(allowed(numbers)):
            raise ConfigError(f"{name}={value} must be {rule}")
        if isinstance(value, (list, tuple)):
            return numbers.astype(np.float32 if kind == "f" else np.int32)
    return value


def whole(name: str, value: Any, least: int) -> Any:
    """Return `value`; ConfigError unless it is whole and at least `least`."""
    return checked(
        name,
        value,
        lambda x: (x == np.floor(x)) & (x >= least) & np.isfinite(x),
        f"a whole number, {least} or more",
    )


def ids(name: str, value: Any) -> Array | np.ndarray:
    """Return token ids as an array [E] or [B, E]; ConfigError for none, or a negative one.

    Rows of different lengths are padded with NO_TOKEN, which matches nothing.
    """
    if hasattr(value, "dtype"):
        return value[None] if value.ndim == 0 else value
    rows = [value] if isinstance(value, int) else list(value)
    nested = any(isinstance(row, (list, tuple)) for row in rows)
    table = [list(row) if isinstance(row, (list, tuple)) else [row] for row in rows]
    flat = [one for row in table for one in row]
    bad = [one for one in flat if isinstance(one, bool) or one != int(one) or one < 0]
    if bad or not rows:
        raise ConfigError(f"{name}={value} must be token ids, 0 or more, at least one")
    if not nested:
        return np.asarray(flat, np.int32)
    width = max(len(row) for row in table)
    return np.asarray([row + [NO_TOKEN] * (width - len(row)) for row in table], np.int32)


def marked(tokens: Any, vocab: int) -> Bool[Array, "_ V"]:
    """Return which ids of the vocabulary are among `tokens` ([E] or [B, E]), as [1 or B, V]."""
    tokens = jnp.atleast_2d(jnp.asarray(tokens))
    rows = jnp.arange(tokens.shape[0])[:, None]
    blank = jnp.zeros((tokens.shape[0], vocab), bool)
    return blank.at[rows, jnp.where(tokens < 0, vocab, tokens)].set(True, mode="drop")

"""Settings of decoding: a number, or an array [B] with one for each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.arrays import Axes
from jaxgen.errors import ConfigError

Number = Annotated[Any, Axes("number", ("", "B"))]
Whole = Annotated[Any, Axes("integer", ("", "B"))]


def column(value: Any) -> Array:
    """Return a scalar or [B] setting as something that broadcasts against [B, V]."""
    value = jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating):  # 64 bits with jax_enable_x64
        value = value.astype(jnp.float32)
    return value[:, None] if value.ndim else value


def refuse(value: Any, wrong: Callable[[np.ndarray], Any], message: str) -> None:
    """Raise ConfigError if a setting on the host is wrong; one on a device, or traced, is trusted.

    message: the line, with {} for the value.
    """
    on_host = isinstance(value, (int, float, np.ndarray, np.generic))
    if on_host and np.any(wrong(np.asarray(value))):
        raise ConfigError(message.format(value))


def next_power_of_two(size: int, least: int = 1) -> int:
    """Return the smallest power of two from `least` on that holds `size`.

    Tables padded to it have few shapes, so other requests seldom compile anew.
    """
    return max(least, 1 << (size - 1).bit_length()) if size > 0 else least

"""Settings of processors: a number, or an array [B] with one for each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxgen import arrays
from jaxgen.arguments import Call, at_least
from jaxgen.arrays import Arrays, Axes
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.errors import ConfigError

Number = Annotated[Any, Axes("number", ("", "B"))]
Whole = Annotated[Any, Axes("integer", ("", "B"))]
TokenIds = Annotated[Any, Axes("integer", ("E", "#B E"))]
IDS = Arrays((Axes("integer", ("", "E", "B E")),), ())


def column(value: Any) -> Array:
    """Return a scalar or [B] setting as something that broadcasts against [B, V]."""
    value = jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating):  # 64 bits with jax_enable_x64
        value = value.astype(jnp.float32)
    return value[:, None] if value.ndim else value


def refuse(value: Any, wrong: Callable[[np.ndarray], Any], message: str) -> None:
    """Raise ConfigError if a setting on the host is wrong; one on a device, or traced, is trusted.

    message: what is said, with {} for the value.
    """
    known = isinstance(value, (int, float, np.ndarray, np.generic))
    if known and np.any(wrong(np.asarray(value))):
        raise ConfigError(message.format(value))


def ids(name: str, value: Any) -> Array | np.ndarray:
    """Return token ids as an array [E] or [B, E]; ConfigError for none, or a negative one.

    Rows of different lengths are padded with NO_TOKEN, which matches nothing.
    """
    if isinstance(value, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in value):
        rows = [row if isinstance(row, (list, tuple)) else [row] for row in value]
        width = max(map(len, rows))
        value = [[*row, *[NO_TOKEN] * (width - len(row))] for row in rows]
    call = Call({})
    value = arrays.read_arrays(IDS, value, name, call)
    if not np.size(value):
        raise ConfigError(f"{name} names no token id; give at least one")
    at_least(0, also=(NO_TOKEN,))(name, value, call)
    value = np.int32(value) if isinstance(value, int) else arrays.as_int32(value, name)
    return value[None] if value.ndim == 0 else value


def marked(tokens: Any, vocab: int) -> Bool[Array, "_ V"]:
    """Return which ids of the vocabulary are among `tokens` ([E] or [B, E]), as [1 or B, V]."""
    tokens = jnp.atleast_2d(jnp.asarray(tokens))
    rows = jnp.arange(tokens.shape[0])[:, None]
    blank = jnp.zeros((tokens.shape[0], vocab), bool)
    return blank.at[rows, jnp.where(tokens < 0, vocab, tokens)].set(True, mode="drop")

"""Which numbers of a matrix stay: by magnitude, or by magnitude times the norm of their input."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgen.compress.sweep import rank_of

Pattern = tuple[int, int] | None  # (zeros, of how many inputs in a row); None: anywhere


@partial(jax.jit, static_argnames=("pattern", "sparsity"))
def magnitude(w: Float[Array, "O I"], *, pattern: Pattern, sparsity: float) -> Bool[Array, "O I"]:
    """Return which numbers stay: the largest of each pattern, or of the whole matrix."""
    scores = jnp.abs(w)
    if pattern:
        return _largest(scores, pattern)
    return rank_of(scores.reshape(-1)).reshape(w.shape) >= round(sparsity * w.size)


@partial(jax.jit, static_argnames=("pattern", "sparsity"))
def wanda(
    w: Float[Array, "O I"], squares: Float[Array, "I"], *, pattern: Pattern, sparsity: float
) -> Bool[Array, "O I"]:
    """Return which numbers stay: the largest |w| times the norm of its input, output by output.

    squares: sum of each input's squares (Sun et al. 2024).
    """
    scores = jnp.abs(w) * jnp.sqrt(squares)
    if pattern:
        return _largest(scores, pattern)
    return rank_of(scores) >= round(sparsity * w.shape[1])


def _largest(scores: Array, pattern: tuple[int, int]) -> Array:
    groups = scores.reshape(len(scores), -1, pattern[1])
    return (rank_of(groups) >= pattern[0]).reshape(scores.shape)

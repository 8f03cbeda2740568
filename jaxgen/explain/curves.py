"""Whether an attribution tells what matters: deletion and insertion, against random orders."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.explain.attribution import Embeds, coalitions
from jaxgen.explain.scores import Score


class Faithfulness(NamedTuple):
    """Curves over the share of vectors taken away, or put in, the largest attributions first.

    Scores are 0 of the baseline and 1 of all vectors. deletion, insertion: [R, J]; their means over
    M random orders, random_deletion, random_insertion: [R, J]. shares: [J] from 0 to 1. gain: [R]
    the area between insertion and deletion, less that of random orders: above 0 is better than
    chance; spread: [R] the standard deviation of that area among random orders.
    """

    shares: Float[Array, "J"]
    deletion: Float[Array, "R J"]
    insertion: Float[Array, "R J"]
    random_deletion: Float[Array, "R J"]
    random_insertion: Float[Array, "R J"]
    gain: Float[Array, "R"]
    spread: Float[Array, "R"]


@compile_once
def faithfulness(
    score: Score,
    embeds: Embeds,
    values: Float[Array | np.ndarray, "R S"],
    key: PRNGKeyArray,
    *,
    visible: Bool[Array | np.ndarray, "R S"] | None = None,
    baseline: Any = None,
    points: int = 8,
    orders: int = 8,
) -> Faithfulness:
    """Return the deletion and insertion curves of attributions (Petsiuk et al. 2018).

    Args:
        score: as of `explain.attribution`.
        embeds: vectors [S, D].
        values: attributions [R, S].
        key: of the random orders.
        visible: [R, S] vectors that a score depends on, which alone are ordered; None: all.
        baseline: vectors that stand for nothing, [S, D] or [D]; None: zeros.
        points: of a curve beside the one of nothing changed, at least 1.
        orders: random ones to compare with, at least 2.

    Returns:
        A Faithfulness. Raises ConfigError for numbers out of range.
    """
    if points < 1 or orders < 2:
        raise ConfigError(f"points={points} and orders={orders} must be at least 1 and 2")
    values = jnp.asarray(values)
    there = jnp.ones(values.shape, bool) if visible is None else jnp.asarray(visible)
    noise = jax.random.uniform(key, (orders, *values.shape))
    ranked = jnp.concatenate([values[None], noise])  # [M, R, S]
    rank = jnp.argsort(jnp.argsort(jnp.where(there, -ranked, jnp.inf), axis=-1), axis=-1)
    shares = jnp.linspace(0, 1, points + 1)
    taken = jnp.round(shares[:, None] * there.sum(axis=-1))  # [J, R]
    first = rank[:, :, None] < taken.T[None, :, :, None]  # [M, R, J, S]
    keep = jnp.stack([~first | ~there[:, None], first | ~there[:, None]])  # [2, M, R, J, S]
    flat, size = keep.reshape(-1, keep.shape[-1]), keep.shape[-1]
    if 2**size < len(flat):  # the curves of a short text share their few subsets
        bits = 1 << np.arange(size)
        subsets = (np.arange(2**size)[:, None] & bits) > 0
        flat = coalitions(score, embeds, subsets, baseline=baseline)[flat @ bits]
    else:
        flat = coalitions(score, embeds, flat, baseline=baseline)
    curves = flat.reshape(*keep.shape[:-1], -1)
    own = jnp.arange(values.shape[0])
    curves = curves[:, :, own, :, own].transpose(1, 2, 0, 3)  # [2, M, R, J]
    whole, nothing = curves[0, 0, :, :1], curves[1, 0, :, :1]
    curves = (curves - nothing) / jnp.where(whole == nothing, 1.0, whole - nothing)
    # Where the vectors lower the score, the curves fall; the largest values still come first.
    sign = jnp.sign(whole - nothing)[:, 0]
    area = sign * jnp.trapezoid(curves[1] - curves[0], shares, axis=-1)  # [M, R]
    return Faithfulness(
        shares,
        *(curves[0, 0], curves[1, 0], curves[0, 1:].mean(axis=0), curves[1, 1:].mean(axis=0)),
        area[0] - area[1:].mean(axis=0),
        area[1:].std(axis=0, ddof=1),
    )

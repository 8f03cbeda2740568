"""Attribution: how much each input vector gives to a score.

All functions are pure and go under jit with the score as an argument. `score` is called with
vectors [B, S, D] and returns [B, R] (see `explain.scores`); `baseline` are the vectors that stand
for nothing, [S, D] or [D]; None: zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.explain.scores import Score

Spans = tuple[int, ...] | None
Embeds = Float[Array | np.ndarray, "S D"]
NODES = 8  # of a panel of the path; Gauss's rule
MOST_PANELS = 128  # of a path
FLOOR = 4e-6  # of the largest score: what float32 leaves of a deep model's
MOST_SPANS = 12  # of exact Shapley values: 2^12 evaluations
BATCH = 32  # inputs that a score is called with at once


class Attribution(NamedTuple):
    """What each vector gives to each score.

    values: [R, S], or [R, P] of spans; score: [R] of the vectors, baseline: [R] of the baseline;
    steps: gradients or evaluations that it took; low, high: 95 % intervals of sampled values.
    """

    values: Float[Array, "R S"]
    score: Float[Array, "R"]
    baseline: Float[Array, "R"]
    steps: Int[Array, ""]
    low: Float[Array, "R S"] | None = None
    high: Float[Array, "R S"] | None = None

    @property
    def gap(self) -> Float[Array, "R"]:
        """Return |sum of the values - difference of the scores| / |difference|."""
        difference = self.score - self.baseline
        return jnp.abs(self.values.sum(axis=-1) - difference) / jnp.abs(difference)


@compile_once
def gradient_x_input(score: Score, embeds: Embeds, *, baseline: Any = None) -> Attribution:
    """Return the gradient of each score times the vectors, less the baseline, summed over D.

    Simonyan et al. 2013; Shrikumar et al. 2017.
    """
    embeds, base = _with_baseline(embeds, baseline)
    values, pull = jax.vjp(score, embeds[None])
    empty = score(base[None])[0]
    parts = _each_target(lambda one: jnp.sum(pull(one[None])[0][0] * (embeds - base), -1), values)
    return Attribution(parts, values[0], empty, jnp.int32(1))


@compile_once
def integrated_gradients(
    score: Score, embeds: Embeds, *, baseline: Any = None, tolerance: float = 5e-4
) -> Attribution:
    """Return the gradients along the straight path from the baseline (Sundararajan et al. 2017).

    The path is cut into panels of 8 nodes. The panel whose gradients explain worst what the scores
    change over it is cut in two, until what all of them leave unexplained is within the tolerance;
    so steps are where the score bends. tolerance: of the gap (`Attribution.gap`). With 128 panels
    it ends whatever the gap is.
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance={tolerance} must be above 0 and below 1")
    embeds, base = _with_baseline(embeds, baseline)
    both = score(jnp.stack([base, embeds]))  # [2, R]
    floor = FLOOR * jnp.max(jnp.abs(both), axis=0)
    allowed = tolerance * jnp.abs(both[1] - both[0]) + floor

    def is_unfinished(state: tuple[_Panels, Array]) -> Array:
        panels, used = state
        gross = jnp.maximum(jnp.abs(panels.error) - floor, 0).sum(axis=0)
        within = (jnp.abs(panels.error.sum(axis=0)) <= allowed) & (gross <= 4 * allowed)
        return (used < MOST_PANELS) & ~jnp.all(within)

    def cut(state: tuple[_Panels, Array]) -> tuple[_Panels, Array]:
        panels, used = state
        worst = jnp.argmax(jnp.max(jnp.abs(panels.error) / allowed, axis=1))
        begin, width, ends = panels.begin[worst], panels.width[worst], panels.ends[worst]
        # A deep model bends sharply next to zeros, with which the path may begin.
        left = jnp.where(begin == 0, width / 8, width / 2)
        begins, widths = jnp.stack([begin, begin + left]), jnp.stack([left, width - left])
        middle, parts = _integrals(score, embeds, base, begins, widths)
        ends = jnp.stack([jnp.stack([ends[0], middle]), jnp.stack([middle, ends[1]])])
        where, halves = jnp.stack([worst, used]), _Panels(begins, widths, ends, parts)
        return jax.tree.map(lambda x, new: x.at[where].set(new), panels, halves), used + 1

    room = _Panels(
        jnp.zeros(MOST_PANELS),
        jnp.zeros(MOST_PANELS).at[0].set(1),
        jnp.zeros((MOST_PANELS, *both.shape)).at[0].set(both),
        jnp.zeros((MOST_PANELS, both.shape[1], len(embeds))).at[0].set(jnp.inf),
    )
    panels, used = lax.while_loop(is_unfinished, cut, (room, jnp.int32(1)))
    return Attribution(panels.parts.sum(axis=0), both[1], both[0], 2 * NODES * (used - 1))


class _Panels(NamedTuple):
    """Of N panels of a path, where each begins and how wide it is [N], the scores at its ends
    [N, 2, R], and the integrals of their gradients over it [N, R, S]; zeros: not yet in use."""

    begin: Array
    width: Array
    ends: Array
    parts: Array

    @property
    def error(self) -> Array:
        """Return what the gradients say too much of each panel's change [N, R]."""
        return self.parts.sum(axis=-1) - (self.ends[:, 1] - self.ends[:, 0])


def _integrals(
    score: Score, embeds: Array, base: Array, begins: Array, widths: Array
) -> tuple[Array, Array]:
    """Return (the score [R] between two panels, the integrals [2, R, S] of both)."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    places = (begins[:, None] + widths[:, None] * (nodes / 2 + 0.5)).reshape(-1)
    places = jnp.append(places, begins[1]).astype(jnp.float32)
    weights = (widths[:, None] * (weights / 2)).reshape(-1)[:, None]
    change = embeds - base
    values, pull = jax.vjp(score, base + places[:, None, None] * change)

    def part(target: Array) -> Array:
        slopes = pull(jnp.append(weights, jnp.zeros((1, 1)), axis=0) * target)[0][:-1]
        return jnp.sum(slopes.reshape(2, NODES, *embeds.shape).sum(axis=1) * change, axis=-1)

    return values[-1], _each_target(part, values).transpose(1, 0, 2)


@compile_once
def occlusion(
    score: Score, embeds: Embeds, *, baseline: Any = None, spans: Spans = None
) -> Attribution:
    """Return how much each score falls when a vector, or a span, becomes the baseline.

    Zeiler and Fergus 2014. spans: [S] the number of each vector's span, -1: never taken away;
    None: each vector is one.
    """
    number = _num_spans(embeds, spans)
    every = np.ones((1, number), bool)
    keep = np.concatenate([~np.eye(number, dtype=bool), every, ~every])
    values = coalitions(score, embeds, keep, baseline=baseline, spans=spans)
    full, empty = values[-2], values[-1]
    return Attribution((full - values[:-2]).T, full, empty, jnp.int32(len(keep)))


@compile_once
def shapley(
    score: Score, embeds: Embeds, *, baseline: Any = None, spans: Spans = None
) -> Attribution:
    """Return the exact Shapley values of up to 12 spans, from all their subsets (Shapley 1953).

    spans: as of `occlusion`. Raises ConfigError for more of them.
    """
    number = _num_spans(embeds, spans)
    if number > MOST_SPANS:
        raise ConfigError(
            f"{number} spans have 2^{number} subsets; give spans= of {MOST_SPANS} at most, or "
            f"sample: sampled_shapley"
        )
    subsets = np.arange(2**number)
    keep = (subsets[:, None] >> np.arange(number)) & 1 > 0
    without = np.stack([subsets[~keep[:, span]] for span in range(number)])  # [P, C / 2]
    sizes = keep.sum(axis=1)[without]
    weights = np.asarray([1 / (number * comb(number - 1, size)) for size in range(number)])[sizes]
    values = coalitions(score, embeds, keep, baseline=baseline, spans=spans)
    gains = values[without + (1 << np.arange(number))[:, None]] - values[without]
    parts = jnp.einsum("PC,PCR->RP", jnp.asarray(weights, jnp.float32), gains)
    return Attribution(parts, values[-1], values[0], jnp.int32(len(keep)))


@compile_once
def sampled_shapley(
    score: Score,
    embeds: Embeds,
    key: PRNGKeyArray,
    *,
    baseline: Any = None,
    spans: Spans = None,
    pairs: int = 32,
) -> Attribution:
    """Return Shapley values from random orders of the spans, with 95 % intervals.

    Castro et al. 2009; each order is taken backwards as well (Mitchell et al. 2022). They sum to
    the difference of the scores whatever the number. pairs: of orders, at least 8.
    """
    if pairs < 8:
        raise ConfigError(f"pairs={pairs} must be at least 8, for an interval")
    number = _num_spans(embeds, spans)
    orders = jax.vmap(lambda one: jax.random.permutation(one, number))(jax.random.split(key, pairs))
    orders = jnp.stack([orders, orders[:, ::-1]], axis=1)  # [M, 2, P]
    rank = jnp.argsort(orders, axis=-1)
    keep = rank[:, :, None, :] < jnp.arange(number + 1)[:, None]  # [M, 2, P + 1, P]
    flat = coalitions(score, embeds, keep.reshape(-1, number), baseline=baseline, spans=spans)
    values = flat.reshape(pairs, 2, number + 1, -1)
    gains = jnp.take_along_axis(jnp.diff(values, axis=2), rank[..., None], axis=2).mean(axis=1)
    mean, spread = gains.mean(axis=0).T, gains.std(axis=0, ddof=1).T / pairs**0.5
    ends = values[0, 0, -1], values[0, 0, 0]
    around = (mean - 1.96 * spread, mean + 1.96 * spread)
    return Attribution(mean, *ends, jnp.int32(flat.shape[0]), *around)


def average(results: Sequence[Any]) -> Any:
    """Return the mean of Attributions, or curves, from several baselines.

    Of integrated gradients these are expected gradients (Erion et al. 2021); they sum to the
    score less the mean one of the baselines.
    """
    return jax.tree.map(lambda *x: jnp.stack(x).mean(axis=0).astype(x[0].dtype), *results)


def coalitions(
    score: Score,
    embeds: Embeds,
    keep: Bool[Array | np.ndarray, "C P"],
    *,
    baseline: Any = None,
    spans: Spans = None,
) -> Float[Array, "C R"]:
    """Return the scores [C, R] of the vectors of which only the spans that are kept are there."""
    embeds, base = _with_baseline(embeds, baseline)
    span = jnp.arange(embeds.shape[0]) if spans is None else jnp.asarray(spans)
    count, keep = keep.shape[0], jnp.asarray(keep)
    batch = min(BATCH, count)
    rows = jnp.pad(keep, ((0, -count % batch), (0, 0))).reshape(-1, batch, keep.shape[1])

    def several(rows):
        there = rows[:, jnp.maximum(span, 0)] | (span < 0)
        return score(jnp.where(there[..., None], embeds, base))

    values = lax.map(several, rows)
    return values.reshape(-1, values.shape[-1])[:count]


def _each_target(part: Any, values: Float[Array, "B R"]) -> Float[Array, "R ..."]:
    """Return part(one-hot target [R]) for each target, in turn: several at once would need room."""
    return lax.map(part, jnp.eye(values.shape[1], dtype=values.dtype))


def _with_baseline(embeds: Embeds, baseline: Any) -> tuple[Array, Array]:
    embeds = jnp.asarray(embeds, jnp.float32)
    base = jnp.zeros(()) if baseline is None else jnp.asarray(baseline, jnp.float32)
    if base.ndim > 2 or (base.ndim and base.shape != embeds.shape[-base.ndim :]):
        raise ConfigError(
            f"baseline of shape {list(base.shape)} must be [D] or [S, D] of {list(embeds.shape)}"
        )
    return embeds, jnp.broadcast_to(base, embeds.shape)


def _num_spans(embeds: Any, spans: Spans) -> int:
    if spans is None:
        return len(embeds)
    if len(spans) != len(embeds) or {*spans} - {-1} != {*range(max(spans) + 1)}:
        raise ConfigError(
            f"spans={spans!r:.60} must be a number for each of {len(embeds)} vectors, 0, 1, 2, ... "
            f"without a gap; -1 is never taken away"
        )
    return max(spans) + 1

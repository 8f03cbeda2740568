"""MAUVE (Pillutla et al. 2021): similarity of two sets of texts by any model's vectors.

Vectors are normalised, projected to the principal axes with `kept` of their variance, and
clustered; MAUVE compares the two histograms over the clusters.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jaxgen.errors import ConfigError, DataError
from jaxgen.measure.bootstrap import Estimate, normal_interval

RESAMPLES = 300


def mauve(
    generated: Float[np.ndarray, "N D"],
    true: Float[np.ndarray, "M D"],
    *,
    seed: int,
    clusters: int | None = None,
    kept: float = 0.9,
    scale: float = 5.0,
) -> Estimate:
    """Return MAUVE, 0 to 1, of the vectors of generated and true texts.

    clusters: None takes a tenth of the smaller set, at least 2, as mauve-text does. The interval
    resamples texts, with the clusters fixed. Raises DataError for fewer than
    two vectors on a side, vectors of two widths or not finite; ConfigError for a setting out of
    range.
    """
    generated, true = np.asarray(generated, float), np.asarray(true, float)
    if min(len(generated), len(true)) < 2:
        sizes = f"{len(generated)} and {len(true)}"
        raise DataError(f"MAUVE of {sizes} texts: each side needs at least two")
    if not (np.isfinite(generated).all() and np.isfinite(true).all()):
        raise DataError("MAUVE's vectors are not finite; take another model")
    if generated.ndim != 2 or generated.shape[1:] != true.shape[1:]:
        shapes = f"{generated.shape} and {true.shape}"
        raise DataError(f"vectors of shapes {shapes}: give [N, D] and [M, D]")
    most = len(generated) + len(true)
    if clusters is not None and not 1 <= clusters <= most:
        raise ConfigError(f"clusters={clusters} must be 1 to {most}, as many as there are vectors")
    if not 0 < kept <= 1 or not 0 < scale < np.inf:
        raise ConfigError(f"kept={kept} must be in (0, 1], and scale={scale} greater than 0")
    count = max(2, round(min(len(generated), len(true)) / 10)) if clusters is None else clusters
    labels = kmeans(_project(np.concatenate([true, generated]), kept), count, seed=seed)
    q, p = labels[: len(true)], labels[len(true) :]

    def histogram(which: np.ndarray) -> np.ndarray:
        return np.bincount(which, minlength=count) / len(which)

    value = frontier(histogram(p), histogram(q), scale=scale)
    rng = np.random.default_rng(seed)
    resampled = [
        frontier(histogram(rng.choice(p, len(p))), histogram(rng.choice(q, len(q))), scale=scale)
        for _ in range(RESAMPLES)
    ]
    return normal_interval(value, np.asarray(resampled), least=0.0, most=1.0)


def _project(vectors: Float[np.ndarray, "N D"], kept: float) -> Float[np.ndarray, "N K"]:
    """Return vectors of length one along the first principal axes that hold `kept` of variance."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1.0)
    centred = unit - unit.mean(axis=0)
    _, strength, axes = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(strength**2)
    if not share[-1]:
        return centred[:, :1]
    return centred @ axes[: int(np.argmax(share >= kept * share[-1])) + 1].T


def kmeans(
    vectors: Float[np.ndarray, "N D"], count: int, *, seed: int, tries: int = 5, rounds: int = 500
) -> Int[np.ndarray, "N"]:
    """Return each vector's cluster by k-means, the best of `tries` starts by k-means++.

    Lloyd 1982; Arthur and Vassilvitskii 2007.
    """
    rng, best, least = np.random.default_rng(seed), np.zeros(len(vectors), int), np.inf
    for _ in range(tries):
        centres = _initial_centres(vectors, count, rng)
        labels = _nearest(vectors, centres)
        for _ in range(rounds):
            sizes = np.bincount(labels, minlength=count)
            sums = np.zeros((count, vectors.shape[1]))
            np.add.at(sums, labels, vectors)
            # A cluster that lost all of its vectors stays where it was.
            full = sizes > 0
            centres[full] = sums[full] / sizes[full, None]
            before, labels = labels, _nearest(vectors, centres)
            if (before == labels).all():
                break
        cost = float(((vectors - centres[labels]) ** 2).sum())
        if cost < least:
            best, least = labels, cost
    return best


def _initial_centres(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return starting centres, each drawn far from those before it."""
    centres = [vectors[rng.integers(len(vectors))]]
    for _ in range(count - 1):
        far = np.min([((vectors - c) ** 2).sum(axis=1) for c in centres], axis=0)
        total = far.sum()
        share = far / total if total > 0 else None
        centres.append(vectors[rng.choice(len(vectors), p=share)])
    return np.stack(centres)


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((centres**2).sum(axis=1) - 2 * vectors @ centres.T).argmin(axis=1)


def frontier(p: np.ndarray, q: np.ndarray, *, scale: float = 5.0, points: int = 25) -> float:
    """Return MAUVE of two histograms over the same clusters.

    The area under the curve of (exp(-c KL(q|r)), exp(-c KL(p|r))) for mixtures r of p and q,
    averaged over both axes as mauve-text does. p, q: [clusters], each summing to one.
    """
    weights = np.linspace(1e-6, 1 - 1e-6, points)[:, None]
    mixed = weights * p + (1 - weights) * q
    # The ends of the curve: one histogram alone leaves the other infinitely far.
    x = np.r_[1.0, np.exp(-scale * _kl(q, mixed)), 0.0]
    y = np.r_[0.0, np.exp(-scale * _kl(p, mixed)), 1.0]
    return (_area(x[::-1], y[::-1]) + _area(y, x)) / 2


def _kl(p: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    positive = p > 0
    return (p[positive] * np.log(p[positive] / mixed[:, positive])).sum(axis=1)


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())

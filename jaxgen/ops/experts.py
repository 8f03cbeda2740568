"""Mixtures of experts: which experts a token goes to, the way there and back, and the losses.

Drop-less: every token reaches all of its experts, however uneven that is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.config_experts import BalanceOver, Normalise, Router
from jaxgen.derivatives import custom_vjp

# Of sparsemixer: experts whose logits lie farther below the best are left out, as a part of it.
TOLERANCE = 0.02


class Routing(NamedTuple):
    """The experts [T, A] of each token, and the weights of what they make of it."""

    experts: Int[Array, "T A"]
    weights: Float[Array, "T A"]


def route(
    logits: Float[Array, "T E"],
    bias: Float[Array, "E"] | None = None,
    *,
    router: Router,
    active: int,
    normalise: Normalise,
    groups: int = 1,
    active_groups: int = 1,
    scale: float = 1.0,
) -> Routing:
    """Return the experts of each token and their weights, of router logits in float32.

    Args:
        logits: of each token and expert.
        bias: added to the scores for the choice alone, not to the weights (Wang et al. 2024).
        router: softmax: scores are probabilities (Shazeer et al. 2017); sigmoid: each expert has a
            score of its own (DeepSeek-V3 2024); sparsemixer: two experts, each weighed by a softmax
            over those close to it (Liu et al. 2023), as it is at inference: nothing is drawn.
        active: experts of a token.
        normalise: chosen: weights sum to 1 over the chosen experts; all: they are the scores.
        groups: into which the experts are cut, in order; experts are chosen from the
            `active_groups` of them that score best. A group of softmax scores as its best expert
            (DeepSeek-V2 2024), one of sigmoid as the sum of its best two (DeepSeek-V3).
        scale: of all weights.
    """
    logits = logits.astype(jnp.float32)
    if router == "sparsemixer":
        return _sparsemixer(logits)
    scores = jax.nn.softmax(logits) if router == "softmax" else jax.nn.sigmoid(logits)
    wanted = scores if bias is None else scores + bias.astype(jnp.float32)
    if router == "sigmoid" and bias is None and groups == 1:
        wanted = logits  # of which large ones have sigmoids that are 1 alike
    wanted = lax.stop_gradient(wanted)
    if groups > 1:
        of_group = wanted.reshape(wanted.shape[0], groups, -1)
        best = lax.top_k(of_group, 1 if router == "softmax" else 2)[0].sum(-1)
        places = lax.top_k(best, active_groups)[1]
        open_ = jnp.sum(jax.nn.one_hot(places, groups, dtype=jnp.int32), 1) > 0
        wanted = jnp.where(open_[..., None], of_group, -jnp.inf).reshape(wanted.shape)
    experts = lax.top_k(wanted, active)[1]
    weights = jnp.take_along_axis(scores, experts, axis=1)
    if normalise == "chosen":
        # The largest of a softmax is never 0; sigmoids may all be.
        weights = weights / (jnp.sum(weights, axis=1, keepdims=True) + 1e-20)
    return Routing(experts, weights * scale)


def _sparsemixer(logits: Float[Array, "T E"]) -> Routing:
    experts, weights, left = [], [], logits
    for _ in range(2):
        expert = jnp.argmax(left, axis=1)[:, None]
        best = jnp.take_along_axis(logits, expert, axis=1)
        far = (best - logits) / jnp.maximum(jnp.abs(logits), best) > TOLERANCE
        close = jax.nn.softmax(jnp.where(lax.stop_gradient(far), -jnp.inf, left))
        experts.append(expert)
        weights.append(jnp.take_along_axis(close, expert, axis=1))
        left = jnp.where(jnp.arange(logits.shape[1]) == expert, -jnp.inf, left)
    return Routing(jnp.concatenate(experts, 1), jnp.concatenate(weights, 1))


class Dispatch(NamedTuple):
    """How the pairs of a token and its expert are sorted by expert.

    pairs: [R] the pair in each row, t * A + a. rows: [T, A] the row of each pair. sizes: [E] rows
    of each expert; rows behind the last are of experts that are not here.
    """

    pairs: Int[Array, "R"]
    rows: Int[Array, "T A"]
    sizes: Int[Array, "E"]


def sort(experts: Int[Array, "T A"], number: int) -> Dispatch:
    """Return the order of rows by expert; numbers below 0 or from `number` on come last."""
    flat = experts.reshape(-1)
    flat = jnp.where((flat < 0) | (flat >= number), number, flat)
    pairs = jnp.argsort(flat, stable=True).astype(jnp.int32)
    rows = jnp.zeros_like(pairs).at[pairs].set(jnp.arange(flat.shape[0], dtype=jnp.int32))
    sizes = jnp.sum(flat[:, None] == jnp.arange(number), axis=0, dtype=jnp.int32)
    return Dispatch(pairs, rows.reshape(experts.shape), sizes)


@custom_vjp
def spread(x: Float[Array, "T D"], to: Dispatch) -> Float[Array, "R D"]:
    """Return the token of each row. Its gradient gathers rows, where JAX would scatter them."""
    return x[to.pairs // to.rows.shape[1]]


def _spread_backward(args: Any, _: tuple[()], grad: Array) -> tuple[Array, Any]:
    return collect(grad, jnp.ones(args[1].rows.shape, grad.dtype), args[1]), _none(args[1])


spread.defvjp(lambda *args: (spread.body(*args), ()), _spread_backward)


@custom_vjp
def collect(
    rows: Float[Array, "R D"], weights: Float[Array, "T A"], to: Dispatch
) -> Float[Array, "T D"]:
    """Return the weighted sum of each token's rows, summed in float32."""
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    each = rows[to.rows].astype(wide) * weights[..., None].astype(wide)
    return jnp.sum(each, axis=1).astype(rows.dtype)


def _collect_backward(args: Any, _: tuple[()], grad: Array) -> tuple[Array, Array, Any]:
    rows, weights, to = args
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    own = grad[to.pairs // to.rows.shape[1]].astype(wide)
    of_rows = own * weights.reshape(-1)[to.pairs][:, None].astype(wide)
    of_weights = jnp.sum(own * rows.astype(wide), axis=1)[to.rows]
    return of_rows.astype(rows.dtype), of_weights.astype(weights.dtype), _none(to)


collect.defvjp(lambda *args: (collect.body(*args), ()), _collect_backward)


def add_biases(
    y: Float[Array, "R F"], bias: Float[Array, "E F"], sizes: Int[Array, "E"]
) -> Float[Array, "R F"]:
    """Return y plus the bias of each row's expert; rows behind the last get none."""
    rows, ends = jnp.arange(y.shape[0])[:, None], jnp.cumsum(sizes)
    # A matmul, for the gradient of rows taken by index is a scatter.
    owner = (rows < ends) & (rows >= ends - sizes)
    own = owner.astype(jnp.float32) @ bias.astype(jnp.float32)
    return (y.astype(jnp.float32) + own).astype(y.dtype)


def _none(tree: Any) -> Any:
    return jax.tree.map(lambda _: None, tree)


class RouterStats(NamedTuple):
    """Sums over the tokens of a layer, or stacked over layers, of which the losses are made.

    chosen: [E] how often each expert was. probs: [E] softmax of the raw logits. squares: of
    logsumexp(logits). tokens: how many; padding is none.
    """

    chosen: Float[Array, "*L E"]
    probs: Float[Array, "*L E"]
    squares: Float[Array, "*L"]
    tokens: Float[Array, "*L"]


def router_stats(
    logits: Float[Array, "T E"], experts: Int[Array, "T A"], real: Array | None = None
) -> RouterStats:
    """Return the sums of a layer; real: [T], False or 0 for padding."""
    logits = logits.astype(jnp.float32)
    weight = jnp.ones(logits.shape[0]) if real is None else real.astype(jnp.float32)
    hits = jnp.sum(jax.nn.one_hot(experts, logits.shape[1], dtype=jnp.float32), axis=1)
    squares = jax.nn.logsumexp(logits, axis=1) ** 2
    sums = (weight @ hits, weight @ jax.nn.softmax(logits), weight @ squares, jnp.sum(weight))
    return RouterStats(*sums)


def balance_loss(stats: RouterStats, over: BalanceOver) -> Float[Array, ""]:
    """Return the load-balancing loss (Fedus et al. 2021, equations 4 to 6).

    E * sum over experts of (share of the tokens that chose it) * (its mean probability): 1 for each
    expert of a token where all are chosen alike.

    Args:
        stats: of one layer, or stacked over layers.
        over: layer: the mean over layers of the loss of each, as in the paper; model: means are
            taken over tokens and layers, as in transformers, and layers may make up for each other.
    """
    number = stats.chosen.shape[-1]
    chosen, probs = (x.reshape(-1, number) for x in (stats.chosen, stats.probs))
    tokens = stats.tokens.reshape(-1, 1)
    if over == "model":
        chosen, probs, tokens = (jnp.sum(x, 0, keepdims=True) for x in (chosen, probs, tokens))
    chosen, probs = (x / jnp.maximum(tokens, 1) for x in (chosen, probs))
    return number * jnp.mean(jnp.sum(lax.stop_gradient(chosen) * probs, axis=1))


def router_z_loss(stats: RouterStats) -> Float[Array, ""]:
    """Return the mean of logsumexp(router logits)^2 (Zoph et al. 2022, equation 5)."""
    return jnp.sum(stats.squares) / jnp.maximum(jnp.sum(stats.tokens), 1)


@custom_vjp
def with_load_gradient(
    weights: Float[Array, "T A"], bias: Float[Array, "E"], stats: RouterStats
) -> Float[Array, "T A"]:
    """Return the weights; the gradient of the bias of the choice is the experts' uneven load.

    So an optimizer that follows the sign of the gradient evens the load without a loss (Wang et al.
    2024): the choice itself has no gradient, and loads of devices, microbatches and replicas add up
    as gradients do. It is small (SMALL), so that clipping by the global norm does not see it.
    """
    return weights


SMALL = 1e-3


def _load_backward(args: Any, _: tuple[()], grad: Array) -> tuple[Array, Array, Any]:
    _, bias, stats = args
    share = stats.chosen / jnp.maximum(jnp.sum(stats.chosen), 1)
    error = SMALL * (share - 1 / bias.shape[0])
    return grad, error.astype(bias.dtype), jax.tree.map(jnp.zeros_like, stats)


with_load_gradient.defvjp(lambda *args: (args[0], ()), _load_backward)

"""Gradients of a private step (DP-SGD, Abadi et al. 2016): clipped by row, summed, with noise.

A row holds text of one unit of privacy (`data.units`). Its gradient is that of the mean loss of its
tokens; the sum of the clipped gradients is divided by the expected number of rows, never by how
many there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.export import are_known
from jaxgen.mesh import shards
from jaxgen.mesh.place import is_spread, platform
from jaxgen.ops.attention import soft_cap
from jaxgen.ops.contract import contract
from jaxgen.ops.losses import cross_entropy, scale_by_weights, vocabulary_loss
from jaxgen.privacy import clip as clips
from jaxgen.privacy import ghost
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.train.accumulate import LossFunction, deal, divisor, in_order, over_microbatches
from jaxgen.train.losses import (
    Batch,
    Loss,
    as_loss,
    checked_batch,
    logits_at_once,
    positions_at_once,
    read,
    rows_of,
    target_weights,
)
from jaxgen.varying import scan

NOISE = 0x4E015E  # folded into a step's key for its noise
RATE = 0.2  # of an adaptive clip's logarithm (Andrew et al. 2021)

Attach = Callable[[Any, PRNGKeyArray | None], Any]
# (private, loss, params, config, batch, key, clip) -> (loss sums, sum of clipped gradients, norms)
Rows = Callable[..., tuple[Loss, Any, Any]]


@dataclass(frozen=True)
class CausalGhost:
    """What ghost norms know of a loss: that it is `causal_loss`, and of which parameters.

    attach: (trained parameters, key) -> those of the model. smoothing, z, chunk: of the loss.
    """

    attach: Attach
    smoothing: float
    z: float
    chunk: int | None


@dataclass(frozen=True)
class Private:
    """How a run makes its gradients private.

    settings: resolved, with noise, seed and expected rows. letters: of the axes of each trained
    parameter, by path. frozen: globs of paths that aren't trained. ghost: None: a gradient for each
    row of a microbatch. Raises ConfigError for settings that leave one of these open.
    """

    settings: PrivacySettings
    letters: Mapping[str, str]
    frozen: tuple[str, ...] = ()
    ghost: CausalGhost | None = None

    def __post_init__(self) -> None:
        noise = self.settings.noise_multiplier or self.settings.solved_noise
        for name, value, fix in (
            ("expected", self.settings.expected, "the mean number of rows of a step"),
            ("seed", self.settings.seed, "a secret, such as secrets.randbits(63)"),
            ("noise_multiplier", noise, "what privacy.accountant.solve_noise finds for epsilon"),
        ):
            if value is None:
                raise ConfigError(f"settings.{name}=None must be given; give {fix}")

    def trains(self, path: str) -> bool:
        """Return whether a parameter is trained."""
        return not tree.match(path, self.frozen)

    @property
    def groups(self) -> Callable[[Any], int] | None:
        """What `clips.clipped` takes to clip each layer on its own; None: all of them at once."""
        if self.settings.clipping == "flat":
            return None
        return lambda path: int(self.letters[path[0].key].startswith("L"))


def gradients(
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    accumulate: int,
    private: Private,
    clip: Any = None,
    rows: Rows | None = None,
) -> tuple[Loss, Any]:
    """Return (loss sums, private gradient), as `accumulate.gradients` does.

    clip: of this step, where it adapts; the next one is metrics["next_clip"]. rows: sums clipped
    gradients, where a unit is no row.
    """
    settings = private.settings
    clip = jnp.float32(settings.clip) if clip is None else clip
    if rows is None:
        rows = _vmap_rows if private.ghost is None else _ghost_rows

    def one(rows_of_batch: Any, key: PRNGKeyArray) -> tuple[Loss, Any]:
        result, grads, norms = rows(private, loss, params, config, rows_of_batch, key, clip)
        counts = (result.nll.reshape(len(norms), -1).sum(axis=1) != 0) & (norms > 0)
        below = jnp.sum(counts & (norms <= clip), dtype=jnp.float32)
        sums = {"below": below, "counted": jnp.sum(counts, dtype=jnp.float32)}
        return result._replace(metrics=sums), grads

    result, grads = over_microbatches(one, params, batch, key, accumulate)
    expected, seed, noise = settings.expected, settings.seed, settings.noise
    assert expected is not None and seed is not None
    secret = clips.secret_key(jax.random.fold_in(key, NOISE), seed)
    below, counted = result.metrics["below"], result.metrics["counted"]
    metrics = {"clipped": (counted - below) / jnp.maximum(counted, 1)}
    if settings.quantile is not None:
        noise, spread = split_noise(noise, expected)
        count = below - counted / 2 + spread * jax.random.normal(jax.random.fold_in(secret, 1))
        share = count / expected + 0.5
        metrics |= {"clip": clip, "next_clip": clip * jnp.exp(-RATE * (share - settings.quantile))}
    noises = clips.noise_like(grads, jax.random.fold_in(secret, 0), noise * clip)
    frozen = tree.map_paths(lambda path, _: not private.trains(path), grads)
    grads = jax.tree.map(
        lambda g, n, off: jnp.zeros_like(g) if off else (g + n) / expected, grads, noises, frozen
    )
    return result._replace(metrics=metrics), grads


def split_noise(noise: float, expected: float) -> tuple[float, float]:
    """Return (noise multiplier of the gradient, deviation of the count) that cost as `noise` does.

    The count of rows below an adaptive clip changes by 1/2 with a row, and has noise of its own.
    """
    spread = max(expected / 20, noise)
    return (noise**-2 - (2 * spread) ** -2) ** -0.5, spread


def _vmap_rows(
    private: Private,
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    batch: Any,
    key: PRNGKeyArray,
    clip: Any,
) -> tuple[Loss, Any, Float[Array, "B"]]:
    """Return (loss sums, sum of clipped gradients, norms), with a gradient of each row at once."""
    flat = tree.flatten(params)
    fixed = {path: leaf for path, leaf in flat.items() if not private.trains(path)}
    moving = {path: leaf for path, leaf in flat.items() if path not in fixed}
    shared = {name: x for name, x in batch.items() if not jnp.ndim(x)}
    own = {name: jnp.asarray(x) for name, x in batch.items() if jnp.ndim(x)}

    def of_row(moving: Any, row: Any, key: PRNGKeyArray) -> tuple[Any, Loss]:
        one = {name: x[None] for name, x in row.items()} | shared
        result = as_loss(loss(tree.unflatten(moving | fixed), config, one, key), one)
        return result.total / divisor(result.weight), result

    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows_of(batch)))
    spread = "data" if is_spread() and "data" in jax.sharding.get_abstract_mesh().shape else None
    by_row = jax.vmap(jax.grad(of_row, has_aux=True), in_axes=(None, 0, 0), spmd_axis_name=spread)
    grads, each = by_row(moving, own, keys)

    summed, norms = clips.clipped_sum(grads, clip, private.groups)
    zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in fixed.items()}
    totals = jnp.where(jnp.isfinite(each.total), each.total, 0.0)
    nll = jnp.where(jnp.isfinite(each.nll), each.nll, 0.0)[:, 0]
    result = Loss(totals.sum(), each.weight.sum(), nll)
    return result, tree.unflatten(summed | zeros), norms


def _ghost_rows(
    private: Private,
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    batch: Any,
    key: PRNGKeyArray,
    clip: Any,
) -> tuple[Loss, Any, Float[Array, "B"]]:
    """Return what `_vmap_rows` returns, by two backward passes that share a forward pass.

    A row whose numbers aren't finite makes the whole step so, and it is refused.
    """
    own, letters = private.ghost, private.letters
    assert own is not None
    arrays = checked_batch(batch, config)
    weights, loud = target_weights(arrays, config)
    share = loud / divisor(jnp.sum(jnp.abs(weights), axis=1))[:, None]
    table = ghost.UNTIED if config.output == "untied" else ghost.TOKENS
    trained = table in letters and private.trains(table)
    tied = trained and table == ghost.TOKENS
    rows, ids = rows_of(batch), arrays["tokens"]
    tap = jnp.zeros((*ids.shape, config.embed_width), config.compute_dtype) if tied else None
    wrapped = ghost.wrap(params, letters, rows, tap, private.trains)

    def features(wrapped: Any) -> tuple[Array, Any]:
        out = read(own.attach(wrapped, key), config, arrays, key)
        return out.features, jax.lax.stop_gradient(_plain(out.table))

    hidden, pull, weight = jax.vjp(features, wrapped, has_aux=True)
    head = partial(_head, config=config, options=own, table=weight, trained=trained, tied=tied)
    total, nll, back, squares, at_ids = _by_groups(
        head, (hidden, arrays["targets"], share, ids), rows, config
    )
    (grads,) = pull(back.astype(hidden.dtype))
    squares = squares + ghost.squares_of(grads, letters, private.trains)
    if tied:
        looked_up = tree.flatten(grads)[ghost.TOKENS].tap.astype(jnp.float32)
        squares += 2 * jnp.sum(looked_up * at_ids, axis=(1, 2))
    norms = jnp.sqrt(jnp.maximum(squares, 0.0))
    scale = clips.factors(norms, clip)
    (grads,) = pull((back * scale[:, None, None]).astype(hidden.dtype))
    summed = ghost.unwrap(grads, params, letters)
    if trained:
        flat = tree.flatten(summed)
        more = _table_gradient(
            hidden, weight, arrays["targets"], share * scale[:, None], config, own
        )
        summed = tree.unflatten(flat | {table: flat[table] + more.astype(jnp.float32)})
    counts = jnp.sum(jnp.abs(weights), axis=1)
    return (
        Loss(jnp.sum(total * divisor(counts)), counts.sum(), nll * divisor(counts)),
        summed,
        norms,
    )


def _plain(table: Any) -> Any:
    return table.weight if isinstance(table, ghost.Ghost) else table


def _head(hidden, targets, share, ids, *, config, options, table, trained, tied):
    """Return of each row: loss, nll, gradient of the features, its table's squares, and more.

    The last is, for a table that is looked up as well, its gradient at the row's own tokens.
    """
    logits, pull = jax.vjp(
        lambda h: contract("BTD,VD->BTV", h, table, dtype=config.compute_dtype), hidden
    )

    def losses(logits: Array) -> tuple[Array, tuple[Array, Array]]:
        capped = soft_cap(logits.astype(jnp.float32), config.logit_cap)
        each, nll = cross_entropy(capped, targets, smoothing=options.smoothing, z=options.z)
        each, nll = scale_by_weights(each, share), scale_by_weights(nll, share)
        return each.sum(), (each.sum(axis=1), nll.sum(axis=1))

    grad, (total, nll) = jax.grad(losses, has_aux=True)(logits)
    (back,) = pull(grad)
    none = jnp.zeros(hidden.shape[0], jnp.float32)
    squares, at_ids = ghost.pair_squares(hidden, grad) if trained else none, none
    if tied:
        # [B, T, S]: what the logit of the row's own token S gets at T.
        own = jnp.take_along_axis(grad, ids[:, None, :], axis=2)
        at_ids = jnp.einsum("bts,btd->bsd", own, hidden, preferred_element_type=jnp.float32)
    return total, nll, back, squares, at_ids


def _by_groups(function: Callable, args: tuple, rows: int, config: ModelConfig) -> Any:
    """Return function(*args) by groups of rows, of which so many logits may exist at once."""
    length = args[0].shape[1]
    groups = 1
    if are_known(length):
        most = max(logits_at_once(platform()) * shards("BV") // (length * config.V), 1)
        groups = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= most)
    if groups == 1:
        return function(*args)
    body = lambda _, xs: (None, function(*xs))  # noqa: E731
    out = scan(body, None, tuple(deal(x, groups) for x in args))[1]
    return jax.tree.map(in_order, out)


def _table_gradient(hidden, table, targets, share, config, options: CausalGhost):
    """Return the gradient of the table of a weighted loss, in chunks as `vocabulary_loss` does."""

    def total(table: Any) -> Any:
        return vocabulary_loss(
            *(jax.lax.stop_gradient(hidden), table, targets, share),
            cap=config.logit_cap,
            smoothing=options.smoothing,
            z=options.z,
            chunk=options.chunk or positions_at_once(targets.shape[0] * config.V),
            dtype=config.compute_dtype,
        )[0]

    return jax.grad(total)(table)

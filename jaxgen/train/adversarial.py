"""Training against perturbed embeddings, and against the model's own second opinion.

`perturbed` wraps any loss: what is added to the vectors of the tokens raises it (FGM, PGD, FreeLB)
or is noise (NEFTune). `smooth_loss` is the causal loss with a divergence between two of the
model's predictions (VAT, SMART, R-Drop). All are functions of the batch and its key, so that a
step comes out the same however often it is begun again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.data.objectives.settings import PREFERENCES
from jaxgen.errors import ConfigError
from jaxgen.mesh.place import global_rows
from jaxgen.models import api
from jaxgen.ops.contract import lookup
from jaxgen.ops.losses import cross_entropy, scale_by_weights, unembed
from jaxgen.ops.perturbed import Perturbed
from jaxgen.train.accumulate import LossFunction
from jaxgen.train.distill import divergence
from jaxgen.train.losses import Batch, Loss, as_loss, checked_batch, read, target_weights
from jaxgen.train.master import wide
from jaxgen.train.settings import SMOOTHING, AdversarialSettings
from jaxgen.varying import scan

TABLE = "embed/tokens"
SOME = 4096  # tokens whose vectors are measured
LEAST = 1e-30  # of a norm that is divided by
WITHIN = 1 - 1e-6  # of epsilon, which a rounded norm must not exceed
Deltas = dict[str, Array]  # "tokens" [..., T, D] and, of an encoder-decoder, "source" [B, S, D]


def check(settings: Any) -> None:
    """Raise ConfigError for a run whose loss can't be changed so; settings: all of the run's."""
    train, model, name = settings.train, settings.model, settings.objective.name
    own = train.adversarial
    smooth = own.kind in SMOOTHING
    for at_fault, what, why in (
        (name == "policy", "objective.name=policy", "which learns from texts that it draws"),
        (train.privacy.on, "train.privacy", "which counts one gradient of each row"),
        (train.federated.on, "train.federated", "whose clients take steps of their own"),
        (smooth and name in PREFERENCES, f"objective.name={name}", "which compares texts"),
        (smooth and settings.distill.teacher, "distill.teacher", "which is a divergence, too"),
        (smooth and train.loss_chunk, "train.loss_chunk", "for it reads all logits at once"),
        (smooth and model.experts.number, "model.experts", "whose router has losses of its own"),
        (own.kind == "rdrop" and not model.dropout, "model.dropout=0", "which draws nothing"),
    ):
        if own.on and at_fault:
            raise ConfigError(f"train.adversarial.kind={own.kind} is not for {what}, {why}")


def perturbed(
    loss: LossFunction,
    settings: AdversarialSettings,
    attach: Callable[[Any, Any], Any] = lambda params, key: params,
) -> LossFunction:
    """Return a loss that is also taken where the vectors of the batch's tokens are perturbed.

    fgm, pgd: (1 - weight) * the loss + weight * the loss where it was climbed to in `steps` (Miyato
    et al. 2017; Madry et al. 2018). freelb: the mean of the losses on the way (Zhu et al. 2020).
    neftune: the loss with noise alone (Jain et al. 2023). A row, which is perturbed by at most
    epsilon, is a text of the batch; its padding is not.

    Args:
        loss: (params, config, batch, key) -> what `as_loss` takes; reads batch["tokens"].
        settings: of a kind in `settings.PERTURBING`.
        attach: (params, key) -> the model's parameters, where others are trained (adapters).
    """
    kinds = {"freelb": _mean_of_ascent, "neftune": _noisy}

    def wrapped(params: Any, config: ModelConfig, batch: Batch, key: Any = None) -> Loss:
        if key is None:
            raise ConfigError("a perturbed loss draws its noise; give it a key")

        def at(params: Any, deltas: Deltas | None) -> Loss:
            whole = attach(params, key)
            whole = whole if deltas is None else _with(whole, config, deltas)
            return as_loss(loss(whole, config, batch, key), batch)

        real = _real(config, batch)
        return kinds.get(settings.kind or "", _mixed)(at, params, config, real, key, settings)

    return wrapped


def describe(params: Any, settings: AdversarialSettings) -> str:
    """Return how far vectors of tokens are moved, beside how long they are; params: a model's.

    An epsilon that drowns the vectors leaves nothing to learn: those of a new model are short.
    """
    table = tree.flatten(params)[TABLE]
    ids = jnp.arange(min(table.shape[0], SOME))
    order = jnp.inf if settings.norm == "linf" else 2

    def length(table: Any) -> Array:
        rows = lookup(table, ids, dtype="float32")
        return jnp.mean(jnp.linalg.norm(rows, ord=order, axis=-1))

    mean = float(jax.jit(length)(table))
    moved, own = ("a number", "largest") if settings.norm == "linf" else ("a text", "length")
    line = (
        f"train.adversarial moves {moved} by up to {settings.size:g} (epsilon); a token's vector "
        f"has a mean {own} of {mean:.2g}"
    )
    drowns = settings.size > mean and settings.kind != "neftune"
    return f"{line}, so that little may be learnt: try epsilon={mean / 2:.1g}" if drowns else line


def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return numbers of [-1, 1) for an array whose first axis is the batch, on any mesh alike."""
    first, rows = global_rows(shape[0])
    noise = jax.random.uniform(key, (rows, *shape[1:]), jnp.float32, -1, 1)
    return noise if rows == shape[0] else jax.lax.dynamic_slice_in_dim(noise, first, shape[0])


def smooth_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    settings: AdversarialSettings,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> Loss:
    """Return the causal loss plus weight * a divergence between two predictions of each target.

    vat: from the model's own prediction to that of perturbed vectors, along the direction in which
    it grows most (Miyato et al. 2016); smart: both ways, climbed to in `steps` (Jiang et al. 2020);
    rdrop: of two draws of dropout, both of which are learnt (Liang et al. 2021). `metrics` hold the
    mean divergence. The logits of all positions are in memory at once.

    Args:
        params, config, batch: as of `causal_loss`; of a model without experts.
        key: turns dropout on; both predictions of vat and smart have the same.
        settings: of a kind in `settings.SMOOTHING`.
        smoothing, z: as of `causal_loss`.
    """
    arrays = checked_batch(batch, config)
    weights, loud = target_weights(arrays, config)

    def logits(params: Any, key: Any) -> Array:
        out = read(params, config, arrays, key)
        cap = config.logit_cap if config.classes is None else None
        return unembed(out.features, out.table, cap=cap, dtype=config.compute_dtype)

    def nlls(logits: Array) -> tuple[Array, Array]:
        return cross_entropy(logits, arrays["targets"], smoothing=smoothing, z=z)

    other_key = jax.random.fold_in(key, 1)
    own = logits(params, key)
    total, nll = nlls(own)
    if settings.kind == "rdrop":
        other = logits(params, other_key)
        total, nll = ((a + b) / 2 for a, b in zip((total, nll), nlls(other), strict=True))
        apart = _both_ways(own, other) / 2
    else:
        at = lambda deltas: logits(_with(params, config, deltas), key)  # noqa: E731
        apart = _smoothness(at, own, weights, _real(config, batch), other_key, settings, config)
    weight = jnp.sum(jnp.abs(weights))
    summed = jnp.sum(scale_by_weights(apart, jnp.abs(weights)))
    return Loss(
        jnp.sum(scale_by_weights(total, loud)) + settings.share * summed,
        weight,
        jnp.sum(scale_by_weights(nll, loud), axis=1),
        {"divergence": jax.lax.stop_gradient(summed) / jnp.maximum(weight, 1)},
    )


def _mixed(at, params, config, real, key, settings) -> Loss:
    """Return the loss of fgm and pgd."""

    def climbed(deltas: Deltas) -> Array:
        return at(jax.lax.stop_gradient(params), deltas).total

    deltas = _begin(config, real, key, settings, settings.noise)
    deltas = _ascend(jax.grad(climbed), deltas, real, settings)
    clean, hard = at(params, None), at(params, jax.lax.stop_gradient(deltas))
    total = (1 - settings.share) * clean.total + settings.share * hard.total
    shown = jax.lax.stop_gradient(hard.total / jnp.where(hard.weight == 0, 1, hard.weight))
    return clean._replace(total=total, metrics={**clean.metrics, "adversarial": shown})


def _noisy(at, params, config, real, key, settings) -> Loss:
    """Return the loss of neftune: its noise is uniform, of a length that depends on the row's."""
    return at(params, _begin(config, real, key, settings, 1.0))


def _mean_of_ascent(at, params, config, real, key, settings) -> Loss:
    """Return the mean loss over the steps of an ascent, with the gradients made on the way.

    One backward pass of a step serves the perturbation and the parameters. The gradient of the
    result is theirs: a product that is 0, and whose derivative they are.
    """
    number = settings.number
    start = _begin(config, real, key, settings, settings.noise)
    both = jax.value_and_grad(
        lambda params, deltas: (lambda result: (result.total, result))(at(params, deltas)),
        argnums=(0, 1),
        has_aux=True,
    )
    held = jax.lax.stop_gradient(params)

    def body(carry: Any, _: Any) -> tuple[Any, Loss]:
        deltas, sums = carry
        (_, result), (grads, slope) = both(held, deltas)
        sums = jax.tree.map(lambda s, g: s + g.astype(s.dtype) / number, sums, grads)
        return (_step(deltas, slope, real, settings), sums), result

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, wide(p.dtype)), held)
    (_, grads), each = scan(body, (start, zeros), jnp.arange(number))
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
    moved = jax.tree.map(lambda p, h, g: jnp.sum((p - h).astype(g.dtype) * g), params, held, grads)
    return jax.lax.stop_gradient(mean)._replace(
        total=jax.lax.stop_gradient(mean.total) + jax.tree.reduce(jnp.add, moved)
    )


def _smoothness(at, own, weights, real, key, settings, config) -> Array:
    """Return the divergence of each prediction from that of perturbed vectors, of vat and smart."""
    weights, held = jnp.abs(weights), jax.lax.stop_gradient(own)
    between = _both_ways if settings.kind == "smart" else _one_way

    def climbed(deltas: Deltas) -> Array:
        return jnp.sum(scale_by_weights(between(held, at(deltas)), weights))

    start = _begin(config, real, key, settings, settings.noise)
    if settings.kind == "smart":
        highest = _ascend(jax.grad(climbed), start, real, settings)
        return between(own, at(jax.lax.stop_gradient(highest)))

    def turn(deltas: Deltas, _: Any) -> tuple[Deltas, None]:  # the power method
        return _scaled(jax.grad(climbed)(deltas), real, settings.stride, settings.norm), None

    direction, _ = scan(turn, start, jnp.arange(settings.number))
    deltas = jax.tree.map(lambda x: x * (settings.size / settings.stride), direction)
    return between(held, at(jax.lax.stop_gradient(_within(deltas, settings))))


def _one_way(own: Array, other: Array) -> Float[Array, "B T"]:
    return divergence(jax.nn.log_softmax(other), jax.nn.log_softmax(own), "forward")


def _both_ways(own: Array, other: Array) -> Float[Array, "B T"]:
    return _one_way(own, other) + _one_way(other, own)


def _real(config: ModelConfig, batch: Batch) -> dict[str, Array]:
    """Return which tokens are no padding, of each perturbed input of the batch [..., T]."""
    names = {"tokens": "segments"}
    if config.topology == "encoder_decoder":
        names["source"] = "source_segments"
    if "tokens" not in batch:
        raise ConfigError("a perturbed loss reads batch['tokens'], which is not there")
    ones = {name: jnp.ones(jnp.shape(batch[name]), jnp.float32) for name in names}
    return {
        name: (jnp.asarray(batch[marks]) > 0).astype(jnp.float32) if marks in batch else ones[name]
        for name, marks in names.items()
    }


def _with(params: Any, config: ModelConfig, deltas: Deltas) -> Any:
    """Return parameters whose token tables add deltas to the vectors of a batch's tokens."""
    flat, source, own = tree.flatten(params), deltas.get("source"), f"encoder/{TABLE}"
    if own in flat:
        flat[own] = Perturbed(flat[own], source)
    return tree.unflatten(flat | {TABLE: Perturbed(flat[TABLE], deltas["tokens"], source)})


def _begin(config, real, key, settings: AdversarialSettings, part: float) -> Deltas:
    """Return noise of at most `part` of epsilon."""
    deltas = {}
    for number, (name, mask) in enumerate(sorted(real.items())):
        shape = (*mask.shape, config.embed_width)
        noise = uniform(jax.random.fold_in(key, number), shape) * mask[..., None]
        length = shape[-2] * shape[-1] if settings.norm == "l2" else 1
        deltas[name] = noise * (settings.size * part / length**0.5)
    return deltas


def _ascend(slope: Callable, deltas: Deltas, real: Any, settings: AdversarialSettings) -> Deltas:
    """Return deltas after `number` steps up the slope, within epsilon."""
    if settings.number == 1:
        return _step(deltas, slope(deltas), real, settings)
    step = lambda deltas, _: (_step(deltas, slope(deltas), real, settings), None)  # noqa: E731
    return scan(step, deltas, jnp.arange(settings.number))[0]


def _step(deltas: Deltas, slope: Deltas, real: Any, settings: AdversarialSettings) -> Deltas:
    up = _scaled(slope, real, settings.stride, settings.norm)
    return _within(jax.tree.map(jnp.add, deltas, up), settings)


def _scaled(slope: Deltas, real: Any, size: float, norm: str) -> Deltas:
    """Return the steps of a size up the slope, of each row."""
    masked = {name: g * real[name][..., None] for name, g in slope.items()}
    if norm == "linf":
        return jax.tree.map(lambda g: size * jnp.sign(g), masked)
    return jax.tree.map(lambda g: size * g / jnp.maximum(_length(g), LEAST), masked)


def _within(deltas: Deltas, settings: AdversarialSettings) -> Deltas:
    """Return deltas brought back to epsilon, each row by itself."""
    most = settings.size * WITHIN
    if settings.norm == "linf":
        return jax.tree.map(partial(jnp.clip, min=-most, max=most), deltas)
    return jax.tree.map(lambda d: d * jnp.minimum(1, most / jnp.maximum(_length(d), LEAST)), deltas)


def _length(x: Float[Array, "... T D"]) -> Float[Array, "... 1 1"]:
    """Return the length of each row's vectors together, whatever their scale."""
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True), LEAST)
    return largest * jnp.sqrt(jnp.sum((x / largest) ** 2, axis=(-2, -1), keepdims=True))

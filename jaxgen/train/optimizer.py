"""The Optax chain that the settings describe."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxgen import tree
from jaxgen.models.serving import NUM_CONTRACTED
from jaxgen.nn.weight import STACK_AXIS
from jaxgen.train import schedule
from jaxgen.train.average import averaged
from jaxgen.train.master import Float32Updates, in_float32
from jaxgen.train.settings import TrainSettings

# Liu et al. 2025: with updates of this RMS one learning rate serves Muon and Adam alike.
MUON_RMS = 0.2


def make(
    settings: TrainSettings, axes: tree.Tree, *, balance_rate: float = 1e-3
) -> optax.GradientTransformation:
    """Return clip -> update rule -> decoupled weight decay -> learning rate, with frozen paths.

    axes: each parameter's logical axes, as `models.api.axes` gives them. Muon takes the weights
    of the layers as matrices from their input axes to their output axes; embeddings, norms and
    biases get AdamW. balance_rate: how far a step moves the biases of a choice of experts, against
    the sign of their gradient. Raises ConfigError for a glob that matches no parameter.
    """
    tree.check_patterns("freeze", settings.freeze, axes)
    # The defaults of no_decay need not match: a model may have neither biases nor norms.
    decayed = tree.map_paths(lambda path, _: not tree.match(path, settings.no_decay), axes)
    rule = RULES[settings.optimizer](settings, schedule.make(settings), decayed, axes)
    # Of a private gradient each row's part is clipped already, and the rest is noise; what clients
    # have moved is no gradient.
    unclipped = settings.clip is None or settings.privacy.on or settings.federated.on
    clip = optax.identity() if unclipped else optax.clip_by_global_norm(settings.clip or 1.0)
    chain = _with_choices(optax.chain(clip, rule), axes, balance_rate)
    chain = in_float32(_with_zeros(chain, settings.zeros, axes) if settings.zeros else chain)
    chain = _with_frozen(chain, settings.freeze, axes) if settings.freeze else chain
    return chain if settings.ema is None else averaged(chain, settings.ema)


def _with_choices(
    chain: optax.GradientTransformation, axes: tree.Tree, balance_rate: float
) -> optax.GradientTransformation:
    labels = tree.map_paths(
        lambda path, _: "choice" if path.endswith("/choice_bias") else "rest", axes
    )
    if "choice" not in tree.flatten(labels).values():
        return chain
    # Their gradient is the experts' load (`ops.experts.with_load_gradient`).
    sign = optax.chain(optax.scale_by_sign(), optax.scale(-balance_rate))
    return optax.partition({"rest": chain, "choice": sign}, labels)


def _with_zeros(
    chain: optax.GradientTransformation, zeros: tuple[str, ...], axes: tree.Tree
) -> optax.GradientTransformation:
    """Return a chain whose updates leave the zeros of matrices as they are."""
    letters = tree.flatten(axes)
    bare = {path: axes.removeprefix(STACK_AXIS) for path, axes in letters.items()}
    matrices = {path: axes for path, axes in bare.items() if axes in NUM_CONTRACTED}
    tree.check_patterns("zeros", zeros, tree.unflatten(matrices))

    def keep(path: Any, update: Any, param: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in matrices or not tree.match(name, zeros):
            return update
        return jnp.where(param == 0, 0, update).astype(update.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(keep, updates, params), state

    return optax.chain(chain, optax.GradientTransformation(lambda params: (), update))


def _with_frozen(
    chain: optax.GradientTransformation, freeze: tuple[str, ...], axes: tree.Tree
) -> Float32Updates:
    labels = tree.map_paths(
        lambda path, _: "frozen" if tree.match(path, freeze) else "trained", axes
    )
    # Frozen gradients are dropped before the clip, which then measures what is trained; no frozen
    # parameter has a float32 copy.
    parts = optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)
    return Float32Updates(*parts)


def _adamw(settings, rate, decayed, axes):
    return optax.adamw(
        rate,
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=decayed,
    )


def _lion(settings, rate, decayed, axes):
    return optax.lion(
        rate,
        b1=settings.beta1,
        b2=settings.beta2,
        weight_decay=settings.weight_decay,
        mask=decayed,
    )


def _adafactor(settings, rate, decayed, axes):
    # Shazeer and Stern 2018, with the caller's learning rate instead of the relative step.
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def _muon(settings, rate, decayed, axes):
    matrices = tree.map_paths(lambda path, letters: matrix_axes(letters), axes)
    rule = muon(
        1.0,
        eps=settings.epsilon,
        adam_b1=settings.beta1,
        adam_b2=settings.beta2,
        muon_weight_dimension_numbers=lambda params: matrices,
        consistent_rms=MUON_RMS,
    )
    # Its own decay has no mask for the parameters that get Adam, so decay and rate come after.
    return optax.chain(
        rule,
        optax.scale(-1.0),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def matrix_axes(letters: str) -> MuonDimensionNumbers | None:
    """Return which axes of a weight go in and which come out, None if it is no layer's matrix.

    "LDNH" maps D to (N, H) for each of L layers; "LNHD" maps (N, H) to D; "LEDF" maps D to F for
    each of E experts.
    """
    # Of experts too, each weight is a matrix of its own.
    depth = len(letters) - len(letters.removeprefix("L"))
    depth += letters[depth:].startswith("E") and len(letters) > depth + 2
    places = list(range(depth, len(letters)))
    if len(places) < 2 or "D" not in letters or set(letters) & set("VSCYR"):
        return None
    width = letters.index("D")
    others = tuple(i for i in places if i != width)
    if width == places[0]:
        return MuonDimensionNumbers(reduction_axis=(width,), output_axis=others)
    return MuonDimensionNumbers(reduction_axis=others, output_axis=(width,))


def _sgd(settings, rate, decayed, axes):
    return optax.chain(
        optax.trace(settings.beta1) if settings.beta1 else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


RULES = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon, "sgd": _sgd}

"""The depth of the model: one scan over the periods of the layer pattern."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.block import Block, Leading, Period
from jaxgen.nn.layer_context import Carry, LayerContext
from jaxgen.nn.tap import below
from jaxgen.nn.unroll import layers_per_step
from jaxgen.nn.weight import STACK_AXIS
from jaxgen.ops.cpu.fused_weights import unfuse
from jaxgen.ops.unrolled import UnrolledLayers
from jaxgen.varying import vary_alike

COLLECTIONS = ("taps", "router")  # what layers leave behind, stacked over them
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def through_layers(
    module: nn.Module,
    config: ModelConfig,
    deterministic: bool,
    carry: Carry,
    context: LayerContext,
) -> Carry:
    """Return the carry after all layers; call it inside `module`, which then owns the layers.

    The context holds one mask per kind of the pattern. Parameters of equal layers are stacked
    along a leading L axis. With a pattern of one kind the paths are "layers/attn/q"; with p kinds
    each scan step runs one period and the paths are "layers/0/attn/q" to "layers/{p-1}/attn/q".
    Layers left over when the depth is no multiple of p follow as "rest/0/attn/q" and so on; those
    that are unlike the rest (`config.leading`) lead as "first/0/attn/q" and so on.
    With layer_weights=shared all periods have one set, which has no L axis; with a number of sets
    that axis counts these, each of which runs for as many periods before the next one's turn.
    """
    period, first = len(context.masks), config.leading
    periods, rest = divmod(config.layers - first, period)
    params = module.get_variable("params", "layers")
    carry, *_ = vary_alike((carry, context, module.variables.get("params")))
    unroll = config.unroll or 1
    if carry[1] is None and not isinstance(params, UnrolledLayers):
        unroll = layers_per_step(params, config)
    block = _block(config, looped=unroll < periods // (config.weight_sets or 1))
    if first:
        one_by_one = _block(config, looped=False)
        carry = Leading(config, deterministic, one_by_one, name="first")(carry, context)
    if periods:
        one: tuple[Any, Any] = (block, config.pattern[0])
        body, extra = one if period == 1 else (Period, block)
        if isinstance(params, UnrolledLayers):
            part = body(config, deterministic, extra, parent=None)
            carry = _through_steps(module, part, params, first // period, carry, context)
        else:
            # A layer is traced twice to draw weights: shared ones are made before the loop, and the
            # keys of all are those of the second tracing. Shapes need no keys.
            shapes_alone = config.weight_sets is None and module.has_rng("shapes")
            twice = module.is_initializing() and not shapes_alone
            scanned = _scan(body, config, periods, unroll, twice)
            layers = scanned(config, deterministic, extra, name="layers")
            numbers, sets = first + jnp.arange(periods) * period, config.weight_sets or 1
            carry, _ = layers(carry, numbers if sets == 1 else numbers.reshape(sets, -1), context)
            _flatten_runs(module, sets)
    if rest:
        one_by_one = _block(config, looped=False)
        tail, masks = Period(config, deterministic, one_by_one, name="rest"), context.masks[:rest]
        context = _numbered(context, carry, first + periods * period)

        def last(carry: Carry, layer: int) -> tuple[Carry, None]:
            return tail(carry, layer, context._replace(masks=masks))

        carry, _ = _through(last, carry, first // period + periods, period)
    return carry


def _block(config: ModelConfig, *, looped: bool) -> Callable[..., nn.Module]:
    """Return the class of a layer, rematerialised in the backward pass as the config says."""
    if config.remat == "none":
        return Block
    # Inside a loop XLA cannot merge recomputation with the forward pass: no barrier is needed.
    return nn.remat(Block, policy=POLICIES[config.remat], prevent_cse=not looped)


def _through(step: Callable[..., Any], carry: Carry, index: int, period: int) -> tuple[Carry, Any]:
    """Return step(carry, its first layer); of an unrolled cache it gets its own part."""
    x, cache = carry
    if cache is None or not cache.is_unrolled:
        return step(carry, index * period)
    (x, one), more = step((x, cache.step(index)), 0)
    return (x, cache.after(index, one)), more


def _numbered(context: LayerContext, carry: Carry, layer: int) -> LayerContext:
    """Return the context of a step whose layers an unrolled cache counts from 0."""
    own = carry[1] is not None and carry[1].is_unrolled
    return context._replace(first=jnp.int32(layer)) if own else context


def _through_steps(
    module: nn.Module,
    part: nn.Module,
    layers: UnrolledLayers,
    before: int,
    carry: Carry,
    context: LayerContext,
) -> Carry:
    """Return the carry after all unrolled steps; what these leave is stacked as by a scan.

    before: steps of a cache that other layers have.
    """
    period = len(context.masks)
    seen, prefix = [], "/".join((*module.path, "layers/"))
    kept = tuple(name for name in COLLECTIONS if module.is_mutable_collection(name))
    context = context._replace(interventions=below(context.interventions, prefix))
    for index, weights in enumerate(layers.steps, before):
        step = partial(_step, part, kept, weights, _numbered(context, carry, index * period))
        carry, left = _through(step, carry, index, period)
        seen.append(left)
    for name, stacked in jax.tree.map(lambda *x: jnp.stack(x), *seen).items():
        module.put_variable(name, "layers", stacked)
    return carry


# Jitted so that it is traced once for all equal layers; it is compiled within its caller.
@partial(jax.jit, static_argnums=(0, 1))
def _step(
    part: nn.Module,
    kept: tuple[str, ...],
    weights: Any,
    context: LayerContext,
    carry: Carry,
    layer: Any,
) -> tuple[Carry, dict[str, Any]]:
    """Return the carry after one step, and the collections `kept` that it leaves."""
    variables = {"params": unfuse(weights)}
    out: Any = part.apply(variables, carry, layer, context, mutable=list(kept))
    (carry, _), left = out
    return carry, left


def layer_path(config: ModelConfig, layer: int) -> tuple[str, int | None]:
    """Return (path, index) of a layer's parameters: its tree, and its index on the tree's L axis.

    Layers that lead, or come after the last whole period, have a tree of their own, and the index
    None; so have all that share one set of parameters. Of several sets it is the number of its own.
    """
    path, index = taps_path(config, layer)
    if index is None or config.weight_sets is None:
        return path, index
    each = config.layers // len(config.pattern) // config.weight_sets
    return path, index // each if config.weight_sets > 1 else None


def taps_path(config: ModelConfig, layer: int) -> tuple[str, int | None]:
    """Return (path, index) of a layer's taps: theirs, and its index among those stacked there."""
    period, first = len(config.pattern), config.leading
    periods = (config.layers - first) // period
    if layer < first:
        return f"first/{layer}", None
    layer -= first
    if layer >= periods * period:
        return f"rest/{layer - periods * period}", None
    return ("layers" if period == 1 else f"layers/{layer % period}"), layer // period


def layer_params(params: Any, config: ModelConfig, layer: int) -> Any:
    """Return the parameters of one layer of a tower, {"attn": {"o": ...}, ...}."""
    path, index = layer_path(config, layer)
    for name in path.split("/"):
        params = params[name]
    return params if index is None else jax.tree.map(lambda leaf: leaf[index], params)


def layer_taps(taps: dict[str, Any], config: ModelConfig, layer: int) -> dict[str, Any]:
    """Return the taps of one layer by their names in it, as "attn/probs"."""
    path, index = taps_path(config, layer)
    own = {name[len(path) + 1 :]: x for name, x in taps.items() if name.startswith(f"{path}/")}
    return own if index is None else {name: x[index] for name, x in own.items()}


def _flatten_runs(module: nn.Module, sets: int) -> None:
    """Put what layers left behind, run after run of each set of weights, in one row of layers."""
    for name in COLLECTIONS if sets > 1 else ():
        if module.is_mutable_collection(name) and module.has_variable(name, "layers"):
            runs = module.get_variable(name, "layers")
            one = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), runs)
            module.put_variable(name, "layers", one)


def _scan(body, config: ModelConfig, periods: int, unroll: int, twice: bool) -> Any:
    """Return the class of so many periods: a loop, or one over each set of weights in another."""
    sets = config.weight_sets
    if sets is None or sets == 1:
        return _loop(body, periods, unroll, twice, shared=sets == 1)
    run = _loop(body, periods // sets, unroll, twice, shared=True)
    return _loop(run, sets, 1, twice, shared=False)


def _loop(body, periods: int, unroll: int, twice: bool, *, shared: bool) -> Any:
    axes: Any = (0, nn.broadcast)
    axes_of: Any = dict.fromkeys(COLLECTIONS, 0) | ({} if shared else {"params": 0})
    return nn.scan(
        body,
        variable_axes=axes_of,
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True},
        in_axes=axes,
        length=periods,
        unroll=min(unroll, periods),
        metadata_params={nn.PARTITION_NAME: STACK_AXIS},
        check_constancy_invariants=twice,
    )

"""Whether layers are unrolled instead of scanned, and their weights as either wants them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.mesh import place
from jaxgen.ops import cpu
from jaxgen.ops.unrolled import UnrolledLayers

# (min weight bytes, max depth) for unrolling instead of scanning. Smaller weights stay in the CPU
# cache, so unrolling gains nothing; deeper stacks compile too slowly. In a scan a GPU copies what
# is saved for the backward pass, and each layer's weights while decoding.
UNROLL_LIMITS = {"cpu": (2**22, 48), "gpu": (2**22, 32)}


def should_unroll(stacked: Any, config: ModelConfig) -> bool:
    """Return whether unrolling layers with these stacked parameters is faster than a scan."""
    device = place.platform()
    if not place.is_alone() or (device == "cpu" and not cpu.enabled("unrolled_layers")):
        return False
    least, deepest = UNROLL_LIMITS.get(device, (0, 0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stacked))
    return config.layers <= deepest and size >= least


def layers_per_step(stacked: Any, config: ModelConfig) -> int:
    """Return the number of layers per scan step without a cache (`unroll` of the config).

    None in the config: all layers where that is faster, else 1. With `remat` it is 1, so that one
    layer's activations exist at a time. Of layers that share their weights no stack is ever sliced.
    """
    if config.unroll or config.weight_sets:
        return config.unroll or 1
    faster = config.remat == "none" and stacked and should_unroll(stacked, config)
    return config.layers if faster else 1


def unroll(stacked: Any) -> UnrolledLayers:
    """Return the stacked parameters of layers as `UnrolledLayers`."""
    slices = jax.tree.map(_slices, stacked)
    steps = jax.tree.transpose(jax.tree.structure(stacked), None, slices)
    return UnrolledLayers(tuple(steps))


def _slices(leaf: Any) -> tuple[Any, ...]:
    """Return one parameter of each layer."""
    if not place.is_here(leaf):
        return tuple(leaf[i] for i in range(leaf.shape[0]))
    # Slicing would compile and copy. These are views of the stack's buffer, which JAX keeps alive
    # even if the stack itself is donated.
    return tuple(map(jax.device_put, np.asarray(leaf)))


def stack_layers(layers: UnrolledLayers) -> Any:
    """Return the parameters of layers stacked along L again: the inverse of `unroll`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers.steps)

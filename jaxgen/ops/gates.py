"""Feed-forward activations: plain ones act on one projection, gated ones on two.

Each brings its derivative in closed form. What differentiation would keep for the backward pass,
an array for every operation of the formula, is then one array: the slope.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float

from jaxgen.mesh.place import platform

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _with_slope(function: Activation, slope: Activation) -> Activation:
    """Return the function, differentiated by its slope in both modes of JAX."""
    function, slope = _wide(function), _wide(slope)
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(lambda t, _, x: t * slope(_with_barrier(x)))
    return wrapped


def _with_barrier(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Put a barrier on x so that XLA recomputes the activation in the backward pass.

    Else XLA saves what the slope shares with the function, in float32: on a GPU reading it back
    takes longer than recomputing it.
    """
    return x if platform() == "cpu" else jax.lax.optimization_barrier(x)


def _wide(function: Activation) -> Activation:
    """Return the function computed in float32 at least, and rounded once.

    In bfloat16 each of its dozen operations would be rounded, and its constants.
    """

    def computed(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return function(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)

    return computed


def _gelu_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    below = 0.5 * (1 + erf(x * sqrt(0.5)))
    return below + x * jnp.exp(-0.5 * x * x) / sqrt(2 * pi)


def _gelu_tanh_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    # Written as in jax.nn.gelu, so that the compiler finds the tanh there, already computed.
    bend = jnp.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * (x**3)))
    inner = sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + bend) + 0.5 * x * (1 - bend * bend) * inner


def _silu_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    gate = jax.nn.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _gelu_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel 2016)."""
    return x * jax.nn.sigmoid(SLOPE * x)


def _gelu_sigmoid_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    gate = jax.nn.sigmoid(SLOPE * x)
    return gate * (1 + SLOPE * x * (1 - gate))


ACTIVATIONS = {
    "gelu_sigmoid": _with_slope(_gelu_sigmoid, _gelu_sigmoid_slope),
    "gelu": _with_slope(partial(jax.nn.gelu, approximate=False), _gelu_slope),
    "gelu_tanh": _with_slope(partial(jax.nn.gelu, approximate=True), _gelu_tanh_slope),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021
    "silu": _with_slope(jax.nn.silu, _silu_slope),
}
# Shazeer 2020: activation(gate) * up. The tanh form in geglu is Gemma's.
GATED = {
    "swiglu": ACTIVATIONS["silu"],
    "geglu": ACTIVATIONS["gelu_tanh"],
    "geglu_exact": ACTIVATIONS["gelu"],
    "reglu": ACTIVATIONS["relu"],
    "swiglu_clamped": lambda x: _clamped_silu(jnp.minimum(x, LIMIT)),
}
# Of swiglu_clamped (gpt-oss, OpenAI 2025): gate * sigmoid(SLOPE * gate) * (up + 1), with the gate
# at most LIMIT, and up within it.
SLOPE, LIMIT = 1.702, 7.0


def _clamped_silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.nn.sigmoid(SLOPE * wide)).astype(x.dtype)


def gated(name: str, gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return activation(gate) * up of a gated kind.

    For the backward pass a GPU or TPU saves the two inputs and recomputes the rest, which takes no
    longer than reading it; a CPU saves activation and slope as well.
    """

    def form(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
        up = jnp.clip(up, -LIMIT, LIMIT) + 1 if name == "swiglu_clamped" else up
        return GATED[name](gate) * up

    return (form if platform() == "cpu" else jax.checkpoint(form))(gate, up)

"""Feed-forward activations: plain ones act on one projection, gated ones on two."""

from __future__ import annotations

from functools import partial

import jax

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
# Shazeer 2020: activation(gate) * up. The tanh form in geglu is Gemma's.
GATED = {"swiglu": ACTIVATIONS["silu"], "geglu": ACTIVATIONS["gelu_tanh"]}

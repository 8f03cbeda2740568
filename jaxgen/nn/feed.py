"""The feed-forward sublayer, plain or gated."""

from __future__ import annotations

from statistics import NormalDist

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.mesh import constrain
from jaxgen.nn.tap import Place, tap
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import add_bias, contract
from jaxgen.ops.gates import ACTIVATIONS, GATED, gated


class Feed(nn.Module):
    """down(activation(up x)), or down(activation(gate x) * up x) for gated kinds.

    width: None: that of the config. sparsity: share of the numbers before the activation that are
    cut.
    """

    config: ModelConfig
    width: int | None = None
    sparsity: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, place: Place | None = None) -> jax.Array:
        """Return x [B, T, D] transformed position by position.

        place: that of a layer's own feed-forward, whose activations
        [B, T, F] are the tap `neurons`.
        """
        config = self.config
        y, gate = self._project("up", x), None
        if is_gated(config.feed):
            gate = cut(self._project("gate", x), self.sparsity)
        y = activate(config.feed, y if gate is not None else cut(y, self.sparsity), gate)
        y = y if place is None else tap(self, "neurons", y, *place)
        return self._down(constrain(y, "BTF"))

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (config.d_model, self.width or config.F)
        w_DF = weight(self, name, shape, "DF", normal, config.param_dtype)
        y = contract("BTD,DF->BTF", x, w_DF, dtype=config.compute_dtype)
        return self._bias(f"{name}_bias", y, "F")

    def _down(self, x: jax.Array) -> jax.Array:
        config = self.config
        normal = nn.initializers.normal(config.init_std / (2 * config.layers) ** 0.5)
        shape = (self.width or config.F, config.d_model)
        down_FD = weight(self, "down", shape, "FD", normal, config.param_dtype)
        y = contract("BTF,FD->BTD", x, down_FD, dtype=config.compute_dtype)
        return self._bias("down_bias", y, "D")

    def _bias(self, name: str, y: jax.Array, letter: str) -> jax.Array:
        if not self.config.has_bias("feed"):
            return y
        zeros = nn.initializers.zeros
        bias = weight(self, name, y.shape[-1:], letter, zeros, self.config.param_dtype)
        return add_bias(y, bias)


def cut(x: jax.Array, share: float) -> jax.Array:
    """Return how far numbers [..., F] are above that of which `share` of a normal row is below."""
    if not share:
        return x
    wide = x.astype("float32")
    mean, spread = (f(wide, axis=-1, keepdims=True) for f in (jnp.mean, jnp.std))
    return jax.nn.relu(wide - mean - spread * NormalDist().inv_cdf(share)).astype(x.dtype)


def is_gated(feed: str) -> bool:
    """Return whether a feed-forward of this kind has a projection `gate` beside `up`."""
    return feed in GATED


def activate(feed: str, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Return the activation of a kind: of up, or of its gate times up."""
    return ACTIVATIONS[feed](up) if gate is None else gated(feed, gate, up)

"""Self-attention: projections around `ops.attention`, and the cache between them."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxgen.config import Layer, ModelConfig
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops import cache as caches
from jaxgen.ops.attention import attend
from jaxgen.ops.contract import contract
from jaxgen.ops.positions import rotate


class Attend(nn.Module):
    """Grouped-query self-attention."""

    config: ModelConfig
    deterministic: bool
    kind: Layer

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: caches.Cache | None,
        layer: jax.Array | int,
    ) -> tuple[jax.Array, caches.Cache | None]:
        """Return (out [B, T, D], cache); mask [B, T, S] spans the cache's slots if there is one."""
        config = self.config
        q = self._project("q", x, config.heads, "N")
        k = self._project("k", x, config.K, "K")
        v = self._project("v", x, config.K, "K")
        if config.qk_norm == "head":
            q = Norm(config, axis="H", name="q_norm")(q)
            k = Norm(config, axis="H", name="k_norm")(k)
        if config.positions == "rope":
            theta, scaling = config.rope(self.kind)
            q = rotate(q, positions, theta=theta, scaling=scaling)
            k = rotate(k, positions, theta=theta, scaling=scaling)
        if cache is not None:
            cache = caches.write(cache, layer, k, v)
            k, v = caches.read(cache, layer)
        drop = nn.Dropout(config.dropout, deterministic=self.deterministic)
        scale = (config.query_scalar or config.H) ** -0.5
        out = attend(q, k, v, mask, scale=scale, cap=config.score_cap, drop=drop)
        return self._output(out), cache

    def _project(self, name: str, x: jax.Array, heads: int, letter: str) -> jax.Array:
        config = self.config
        shape = (config.d_model, heads, config.H)
        normal = nn.initializers.normal(config.init_std)
        w_DNH = weight(self, name, shape, f"D{letter}H", normal, config.param_dtype)
        y = contract(f"BTD,D{letter}H->BT{letter}H", x, w_DNH, dtype=config.compute_dtype)
        if config.biases != "none":
            zeros = nn.initializers.zeros
            bias = weight(self, f"{name}_bias", shape[1:], f"{letter}H", zeros, config.param_dtype)
            y = y + bias.astype(y.dtype)
        return y

    def _output(self, x: jax.Array) -> jax.Array:
        config = self.config
        shape = (config.heads, config.H, config.d_model)
        # GPT-2: the residual stream sums 2 * layers outputs, so each starts smaller.
        normal = nn.initializers.normal(config.init_std / (2 * config.layers) ** 0.5)
        o_NHD = weight(self, "o", shape, "NHD", normal, config.param_dtype)
        y = contract("BTNH,NHD->BTD", x, o_NHD, dtype=config.compute_dtype)
        if config.biases in ("all", "attention"):
            zeros = nn.initializers.zeros
            bias = weight(self, "o_bias", (config.d_model,), "D", zeros, config.param_dtype)
            y = y + bias.astype(y.dtype)
        return y

"""A layer whose memory is a matrix: the gated delta rule behind a short convolution."""

from __future__ import annotations

from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.mesh import constrain
from jaxgen.nn.attend import cache_index
from jaxgen.nn.layer_context import Carry, Layer, LayerContext
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops import cache as caches
from jaxgen.ops import delta as ops
from jaxgen.ops.contract import contract
from jaxgen.ops.gates import ACTIVATIONS


class Delta(nn.Module):
    """Gated DeltaNet (Yang et al. 2024), as Qwen3-Next has it."""

    config: ModelConfig
    deterministic: bool
    kind: str

    @nn.compact
    def __call__(self, carry: Carry, layer: Layer, context: LayerContext) -> tuple[Carry, None]:
        """Return ((out [B, T, D], cache with the layer's new state), None)."""
        x, cache = carry
        config, own = self.config, self.config.delta
        assert own is not None
        B, T, _ = x.shape
        K, G = own.key_heads, own.value_heads // own.key_heads
        heads = {"q": (K, own.key_width), "k": (K, own.key_width), "v": (K, G, own.value_width)}
        flat = [self._project(name, x, shape).reshape(B, T, -1) for name, shape in heads.items()]
        taps = [
            self._weight(f"{name}_conv", (*shape, own.window), "KGHW" if name == "v" else "KHW")
            for name, shape in heads.items()
        ]
        mixed = jnp.concatenate(flat, axis=-1)
        taps = jnp.concatenate([tap.reshape(-1, own.window) for tap in taps])
        index = cache_index(config, self.kind, cache, layer)
        inputs, state = caches.read_state(cache, index, own, B, mixed.dtype)
        texts = ops.numbered(context.segments, context.positions)
        convolved = ops.causal_convolution(mixed, taps, inputs, texts)
        convolved = ACTIVATIONS["silu"](convolved.astype("float32")).astype(mixed.dtype)
        q, k, v = self._split(convolved, heads)
        beta = jax.nn.sigmoid(self._project("beta", x, (K, G)).astype("float32"))
        decay = self._decay(self._project("step", x, (K, G)))
        if cache is not None:
            valid = jnp.arange(T)[None] < caches.num_valid(cache, T)[:, None]
            beta, decay = ops.silenced(beta, valid), ops.silenced(decay, valid)
        out, state = ops.delta_rule(q, k, v, decay, beta, state, texts)
        if cache is not None:
            inputs = ops.last_inputs(mixed, inputs, caches.num_valid(cache, T))
            cache = caches.write_state(cache, index, inputs, state)
        out = Norm(config.replace(norm="rms"), axes="H", name="norm")(out)
        gate = self._project("gate", x, (K, G, own.value_width)).astype("float32")
        out = (out.astype("float32") * ACTIVATIONS["silu"](gate)).astype(out.dtype)
        return (self._output(out), cache), None

    def _weight(self, name: str, shape: tuple[int, ...], letters: str) -> Any:
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        return weight(self, name, shape, letters, normal, config.param_dtype)

    def _project(self, name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return x [B, T, D] as [B, T, *shape] through the weight `name`."""
        wide = {"beta": "KG", "step": "KG"}.get(name, "KGH" if len(shape) == 3 else "KH")
        w = self._weight(name, (self.config.d_model, *shape), f"D{wide}")
        y = contract(f"BTD,D{wide}->BT{wide}", x, w, dtype=self.config.compute_dtype)
        return constrain(y, f"BT{wide}")

    def _split(self, mixed: jax.Array, heads: dict[str, tuple[int, ...]]) -> list[jax.Array]:
        """Return the parts of the channels [B, T, C] as heads."""
        found, begin = [], 0
        for shape in heads.values():
            size = prod(shape)
            found.append(mixed[..., begin : begin + size].reshape(*mixed.shape[:2], *shape))
            begin += size
        return found

    def _decay(self, step: jax.Array) -> jax.Array:
        """Return the logarithm [B, T, K, G] of what a token leaves of the state."""
        config, shape = self.config, step.shape[2:]
        rate = weight(self, "rate", shape, "KG", _log_uniform, config.param_dtype)
        ones = nn.initializers.ones
        bias = weight(self, "step_bias", shape, "KG", ones, config.param_dtype)
        rate, bias, step = (y.astype("float32") for y in (rate, bias, step))
        return -jnp.exp(rate)[None, None] * jax.nn.softplus(step + bias[None, None])

    def _output(self, x: jax.Array) -> jax.Array:
        config = self.config
        normal = nn.initializers.normal(config.init_std / (2 * config.layers) ** 0.5)
        shape = (*x.shape[2:], config.d_model)
        o_KGHD = weight(self, "o", shape, "KGHD", normal, config.param_dtype)
        x = constrain(x, "BTKGH")
        return contract("BTKGH,KGHD->BTD", x, o_KGHD, dtype=config.compute_dtype)


def _log_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return logarithms of rates from 0.01 to 16, as Mamba 2 begins."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 0.01, 16.0))

"""Latent attention: keys and values of all heads from one narrow vector, which a cache holds."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.config_groups import Latent
from jaxgen.export import Size, surely
from jaxgen.mesh import constrain
from jaxgen.nn.attend import attend_and_tap, extended, options, output, project
from jaxgen.nn.layer_context import Carry, Layer, LayerContext
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import add_bias, contract
from jaxgen.ops.positions import rotate


class LatentAttend(nn.Module):
    """Self-attention of DeepSeek-V2 (2024, section 2.1) and its successors.

    A token has one latent and one rotated key, which all heads share. Heads either expand the
    latents to keys and values of their own, or, where that takes fewer operations, meet them in the
    latents' space: then the latents are the one key head, and the one value head.
    """

    config: ModelConfig
    deterministic: bool
    kind: str

    @nn.compact
    def __call__(self, carry: Carry, layer: Layer, context: LayerContext) -> tuple[Carry, None]:
        """Return ((out [B, T, D], cache), None); the one mask is over the cache's slots if any."""
        x, cache = carry
        config, latent = self.config, self.config.latent
        assert latent is not None
        q = self._queries(x, latent)
        plain_q, q = q[..., : latent.plain_width], q[..., latent.plain_width :]
        rank = latent.kv_rank
        both = self._down("kv", x, rank + latent.rope_width)[:, :, None]
        latents, k = self._normed("kv_norm", both[..., :rank]), both[..., rank:]
        if (rope := config.rope_of(self.kind)) is not None:
            q, k = (rotate(y, context.positions, rope) for y in (q, k))
        latents, k = constrain(latents, "BSKH"), constrain(k, "BSKH")
        cache, latents, k = extended(config, self.kind, cache, layer, latents, k)
        place = context.place(layer)
        attention = {"mask": context.masks[0], "place": place, **options(self, context, x)}
        k_up, v_up = self._up("k_up", latent.plain_width), self._up("v_up", latent.value_width)
        dtype = config.compute_dtype
        if is_absorbed(latent, x.shape[1], latents.shape[1]):
            plain_q = contract("BTNH,NHZ->BTNZ", plain_q, k_up, dtype=dtype)
            q, k = _beside(plain_q, q, "BTNH"), _beside(latents, k, "BSKH")
            out = attend_and_tap(self, q, k, latents, **attention)
            out = contract("BTNZ,NHZ->BTNH", out, v_up, dtype=dtype)
            return (output(self, out, place), cache), None
        q = _beside(plain_q, q, "BTNH")
        plain_k, v = (
            contract("BSZ,NHZ->BSNH", latents[:, :, 0], up, dtype=dtype) for up in (k_up, v_up)
        )
        k = jnp.broadcast_to(k, (*plain_k.shape[:3], latent.rope_width))
        k, v = _beside(plain_k, k, "BSKH"), constrain(v, "BSKH")
        return (output(self, attend_and_tap(self, q, k, v, **attention), place), cache), None

    def _queries(self, x: jax.Array, latent: Latent) -> jax.Array:
        """Return queries [B, T, N, H], whose last numbers are those that turn."""
        config = self.config
        if latent.q_rank is None:
            return project(self, "q", x, config.heads, "N", bias=False)
        x = self._normed("q_norm", self._down("q", x, latent.q_rank))
        normal = nn.initializers.normal(config.init_std)
        shape = (latent.q_rank, config.heads, latent.width)
        up_ZNH = weight(self, "q_up", shape, "ZNH", normal, config.param_dtype)
        return contract("BTZ,ZNH->BTNH", x, up_ZNH, dtype=config.compute_dtype)

    def _down(self, name: str, x: jax.Array, width: int) -> jax.Array:
        config = self.config
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
        shape = (config.d_model, width)
        w_DZ = weight(self, f"{name}_down", shape, "DZ", normal, config.param_dtype)
        y = contract("BTD,DZ->BTZ", x, w_DZ, dtype=config.compute_dtype)
        if not config.has_bias("qkv"):
            return y
        bias = weight(self, f"{name}_down_bias", shape[1:], "Z", zeros, config.param_dtype)
        return add_bias(y, bias)

    def _up(self, name: str, width: int) -> Any:
        """Return the weight from the latents to each head's keys or values."""
        config, latent = self.config, self.config.latent
        assert latent is not None
        normal = nn.initializers.normal(config.init_std)
        # The latents come last: both forms contract them, or leave them, with the heads in front.
        shape = (config.heads, width, latent.kv_rank)
        return weight(self, name, shape, "NHZ", normal, config.param_dtype)

    def _normed(self, name: str, x: jax.Array) -> jax.Array:
        latent = self.config.latent
        assert latent is not None
        config = self.config.replace(norm_epsilon=latent.norm_epsilon)
        return Norm(config, axes="Z", name=name)(x)


def _beside(plain: jax.Array, turned: jax.Array, letters: str) -> jax.Array:
    return constrain(jnp.concatenate([plain, turned], axis=-1), letters)


def is_absorbed(latent: Latent, queries: Size, keys: Size) -> bool:
    """Return whether attention in the latents' space multiplies less than expanding all latents.

    A product of a head is counted as often as it is done for `queries` and `keys` of a row.
    """
    rank, width = latent.kv_rank, latent.plain_width + latent.value_width
    absorbed = queries * (rank * width + keys * (2 * rank + latent.rope_width))
    expanded = keys * (rank * width + queries * (width + latent.rope_width))
    return surely(lambda: absorbed < expanded) or surely(lambda: queries == 1)

"""Sound and images to vectors: the first layers of an encoder that reads no tokens."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.config_media import Stem as StemConfig
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import add_bias, contract, lookup
from jaxgen.ops.gates import ACTIVATIONS
from jaxgen.ops.positions import sinusoid

KERNEL = 3  # frames that a convolution over sound sees


class Stem(nn.Module):
    """Vectors of log-mel frames (Radford et al. 2022) or of patches (Dosovitskiy et al. 2020)."""

    config: ModelConfig
    stem: StemConfig

    @nn.compact
    def __call__(self, media: Any) -> jax.Array:
        """Return x [B, T, D] of media [B, frames, bins] or [B, rows, columns, colours]."""
        x = self._of_sound(media) if self.stem.kind == "log_mel" else self._of_image(media)
        places = jnp.arange(x.shape[1])
        table = self._weight("positions", (x.shape[1], self.config.d_model), "SD", self._waves())
        if self.stem.kind == "log_mel":  # waves, which stay as they are
            table = jax.lax.stop_gradient(table)
        x = x + lookup(table, places, dtype=self.config.compute_dtype, axes="SD")[None]
        return x if self.stem.norm == "none" else Norm(self.config, name="norm")(x)

    def _of_sound(self, frames: jax.Array) -> jax.Array:
        """Return [B, frames / 2, D]: two convolutions, each behind an activation."""
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self._convolved("conv1", frames, "WMD", 1))
        return gelu(self._convolved("conv2", x, "WDD", 2))

    def _convolved(self, name: str, x: jax.Array, axes: str, stride: int) -> jax.Array:
        """Return x [B, T, M] seen through windows of frames, one matmul for all of them."""
        config = self.config
        kernel = self._weight(name, (KERNEL, x.shape[-1], config.d_model), axes)
        padded = jnp.pad(x, ((0, 0), (KERNEL // 2, KERNEL // 2), (0, 0)))
        ends = (start + x.shape[1] for start in range(KERNEL))
        windows = [padded[:, start:end:stride] for start, end in enumerate(ends)]
        flat = kernel.reshape(-1, config.d_model)
        y = contract("BTF,FD->BTD", jnp.concatenate(windows, -1), flat, dtype=config.compute_dtype)
        return add_bias(y, self._bias(f"{name}_bias"))

    def _of_image(self, pixels: jax.Array) -> jax.Array:
        """Return [B, patches, D], row by row, behind the class token if there is one."""
        config, stem = self.config, self.stem
        side = stem.patch
        assert side is not None
        kernel = self._weight("patches", (side, side, stem.channels, config.d_model), "WXMD")
        rows, grid = pixels.shape[0], stem.size // side
        cut = pixels.reshape(rows, grid, side, grid, side, stem.channels).swapaxes(2, 3)
        cut = cut.reshape(rows, grid * grid, -1)
        flat = kernel.reshape(-1, config.d_model)
        x = contract("BTF,FD->BTD", cut, flat, dtype=config.compute_dtype)
        if stem.bias == "bias":
            x = add_bias(x, self._bias("patches_bias"))
        if stem.first == "none":
            return x
        first = self._weight("first", (1, config.d_model), "SD").astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(first, (rows, 1, config.d_model)), x], axis=1)

    def _waves(self) -> Any:
        """Return how positions begin: as waves for sound, None for images."""
        if self.stem.kind != "log_mel":
            return None

        def waves(_: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return sinusoid(jnp.arange(shape[0])[None], shape[1], last=True)[0].astype(dtype)

        return waves

    def _weight(self, name: str, shape: tuple[int, ...], axes: str, init: Any = None) -> Any:
        normal = init or nn.initializers.normal(self.config.init_std)
        return weight(self, name, shape, axes, normal, self.config.param_dtype)

    def _bias(self, name: str) -> Any:
        return self._weight(name, (self.config.d_model,), "D", nn.initializers.zeros)

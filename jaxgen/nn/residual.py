"""What is around the sublayers of a layer: several residual streams, a second way, vectors."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.mesh import constrain, gather
from jaxgen.nn.feed import activate, is_gated
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import contract, lookup

FLOOR = 1e-5  # of a mean square that is divided by


class Streams(nn.Module):
    """AltUp (Baykal et al. 2023) of one layer, as Gemma 3n has it.

    Of the streams [B, T, P, D] a layer reads the first; `predict` says what all will be, and
    `correct` moves each by a share of how far that was from what the layer then made of the first.
    """

    config: ModelConfig
    deterministic: bool

    def setup(self) -> None:
        config, number = self.config, self.config.residual.streams
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros

        def own(name: str, shape: tuple[int, ...], letters: str, init: Any = normal) -> Any:
            return weight(self, name, shape, letters, init, config.param_dtype)

        self.norm = Norm(config)
        self.router_DP = own("router", (config.d_model, number), "DP")
        self.predict_QP = own("predict", (number**2, number), "QP")
        self.correct_PP = own("correct", (number, number), "PP")
        self.gain_D = own("gain", (config.d_model,), "D", zeros) if config.per_layer else None

    def predict(self, streams: jax.Array) -> jax.Array:
        """Return the streams [B, T, P, D] that the layer is expected to leave."""
        routed = self._routed(streams[..., 0, :])
        flat = contract("BTP,QP->BTQ", routed, self._cut(self.predict_QP), dtype="float32")
        shares = flat.reshape(*flat.shape[:2], *[self.config.residual.streams] * 2)
        mixed = jnp.einsum("BTOP,BTPD->BTOD", shares, streams.astype("float32"))
        return constrain((mixed + streams).astype(streams.dtype), "BTPD")

    def correct(self, predicted: jax.Array, x: jax.Array) -> jax.Array:
        """Return the streams [B, T, P, D] after a layer that made x [B, T, D] of the first."""
        flat = contract("BTP,OP->BTO", self._routed(x), self._cut(self.correct_PP), dtype="float32")
        new = (x - predicted[..., 0, :]).astype("float32")
        moved = new[..., None, :] * (flat + 1)[..., None]
        return constrain((predicted + moved).astype(x.dtype), "BTPD")

    def scaled(self, x: jax.Array) -> jax.Array:
        """Return the first stream as the layer's own vectors meet it."""
        return x if self.gain_D is None else x * self.gain_D.astype(x.dtype)

    def _routed(self, x: jax.Array) -> jax.Array:
        x = (self.norm(x) / self.config.d_model).astype("float32")
        return jnp.tanh(contract("BTD,DP->BTP", x, self.router_DP, dtype="float32"))

    def _cut(self, coefficients: Any) -> Any:
        clip = self.config.residual.clip
        if clip is None or self.deterministic:
            return coefficients
        return jnp.clip(coefficients, -clip, clip)


class Spread(nn.Module):
    """Several residual streams from one, or one from several: a projection for each but the first.

    Each is made as large as the first, before they are averaged.
    """

    config: ModelConfig
    to: str  # "streams" | "one"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return streams [B, T, P, D] of x [B, T, D], or x of streams."""
        config, number = self.config, self.config.residual.streams
        normal = nn.initializers.normal(config.init_std)
        shape = (number - 1, config.d_model, config.d_model)
        others_PDD = weight(self, "others", shape, "PDD", normal, config.param_dtype)
        first = x if self.to == "streams" else x[..., 0, :]
        source = first[..., None, :] if self.to == "streams" else x[..., 1:, :]
        source = jnp.broadcast_to(source, (*first.shape[:2], number - 1, config.d_model))
        matrices = gather(others_PDD, "PDD").astype(config.compute_dtype)
        others = jnp.einsum("BTPD,PDO->BTPO", source, matrices)
        size, own = (
            jnp.mean(jnp.square(y.astype("float32")), axis=-1, keepdims=True)
            for y in (first[..., None, :], others)
        )
        factor = jnp.sqrt(size) / jnp.sqrt(jnp.maximum(own, FLOOR))
        streams = jnp.concatenate([first[..., None, :], (others * factor).astype(x.dtype)], axis=-2)
        if self.to == "streams":
            return constrain(streams, "BTPD")
        return jnp.mean(streams, axis=-2, dtype="float32").astype(x.dtype)


class Laurel(nn.Module):
    """A learned augmented residual layer (Menghani et al. 2024): x plus a low-rank map of it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [B, T, D] plus its narrow projection, normalised."""
        config, rank = self.config, self.config.residual.laurel or 0
        y = project(self, "down", x, (config.d_model, rank), "DZ")
        y = project(self, "up", y, (rank, config.d_model), "ZD")
        return x + Norm(config, name="norm")(y)


class LayerVectors(nn.Module):
    """The vectors that tokens have for each layer beside those of the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """Return the vectors [L, B, T, Z] of tokens [B, T] with embeddings x [B, T, D]."""
        config, own = self.config, self.config.per_layer
        assert own is not None
        rows, width = own.vocab_size or config.V, config.layers * own.width
        normal, dtype = nn.initializers.normal(config.init_std), config.compute_dtype
        table_VZ = weight(self, "tokens", (rows, width), "VZ", normal, config.param_dtype)
        found = lookup(table_VZ, jnp.where(tokens < rows, tokens, 0), dtype=dtype, axes="VZ")
        found = found * jnp.asarray(own.width**0.5, dtype)
        y = project(self, "project", x, (config.d_model, width), "DZ")
        y = y * jnp.asarray(config.d_model**-0.5, dtype)
        y, found = (a.reshape(*x.shape[:2], config.layers, own.width) for a in (y, found))
        y = Norm(config, axes="Z", name="norm")(y)
        return jnp.moveaxis((y + found) * jnp.asarray(2**-0.5, dtype), 2, 0)


class LayerInput(nn.Module):
    """What a layer lets through of its tokens' own vectors."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, vectors: jax.Array) -> jax.Array:
        """Return what is added to the stream x [B, T, D] from vectors [B, T, Z]."""
        config, width = self.config, vectors.shape[-1]
        gate = project(self, "gate", x, (config.d_model, width), "DZ")
        if is_gated(config.feed):
            y = activate(config.feed, vectors, gate)
        else:
            y = activate(config.feed, gate, None) * vectors
        y = project(self, "project", y, (width, config.d_model), "ZD")
        return Norm(config, name="norm")(y)


def project(
    module: nn.Module, name: str, x: jax.Array, shape: tuple[int, int], letters: str
) -> jax.Array:
    """Return x [B, T, shape[0]] times the weight `name` of a module."""
    config: ModelConfig = getattr(module, "config")  # noqa: B009
    normal = nn.initializers.normal(config.init_std)
    w = weight(module, name, shape, letters, normal, config.param_dtype)
    first, last = letters
    return contract(f"BT{first},{letters}->BT{last}", x, w, dtype=config.compute_dtype)

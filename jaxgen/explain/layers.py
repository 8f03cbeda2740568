"""Parameters and taps of one layer, and what each of its heads adds to the residual stream."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.nn.stack import layer_taps
from jaxgen.ops.contract import contract


def check_attention(config: ModelConfig) -> None:
    """Raise ConfigError unless all layers have attention, with values that are taps."""
    mixers = {config.mixer(kind) for kind in config.pattern}
    if mixers != {"attention"}:
        raise ConfigError(
            f"mixer={'+'.join(sorted(mixers))}: such layers have no attention to show; take a "
            f"gradient, or occlusion"
        )


def stack_taps(taps: dict[str, Array], config: ModelConfig, name: str) -> Float[Array, "L ..."]:
    """Return one tap of all layers, in the order of the depth."""
    return jnp.stack([layer_taps(taps, config, layer)[name] for layer in range(config.layers)])


def head_outputs(
    config: ModelConfig, o_NHD: Any, heads: Float[Array, "B T N H"]
) -> Float[Array, "N B T D"]:
    """Return what each head adds, without a bias: `o` of that head's numbers alone."""

    def one(number: Array) -> Array:
        alone = jnp.where(jnp.arange(heads.shape[2])[:, None] == number, heads, 0)
        return contract("BTNH,NHD->BTD", alone, o_NHD, dtype=config.compute_dtype)

    return lax.map(one, jnp.arange(heads.shape[2]))

"""Arithmetic of a training step, against what the device could do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.profile import chips, limits

# What tokens are not multiplied with.
LOOKED_UP = (
    *("embed/tokens", "embed/positions", "embed/types", "per_layer/tokens", "relative/*"),
    *("*norm*", "*bias", "*gain"),
)


def per_token(config: ModelConfig, *, beside: int | None = None) -> float:
    """Return training FLOPs per token: 6 per weight in a product, 12 L N H T for attention.

    The convention of PaLM (Chowdhery et al. 2022, appendix B): causal masking is not discounted,
    embedding lookups count nothing, the output table counts once. Of experts those count that a
    token goes to. Latent attention counts in its expanded form, whose keys and values differ in
    width; a layer of the delta rule reads, corrects and reads its matrix. Several residual streams
    are mixed once, and corrected once, in each layer. beside: numbers of an adapter, where they
    alone are trained: the weights beneath have no gradient of their own, so 4 per weight, and 6 per
    number of the adapter.
    """
    weights = api.active(config)
    sets, times = config.weight_sets, 1
    if sets is not None:
        times = config.layers // len(config.pattern) // sets
    products = sum(
        size * (times if path.startswith("layers/") else 1)
        for path, size in weights.items()
        if not tree.match(path, LOOKED_UP)
    )
    if config.output == "tied":
        products += config.V * config.embed_width
    if (streams := config.residual.streams) > 1:
        products += config.layers * (streams**2 + streams) * config.d_model
    kinds = [config.pattern[layer % len(config.pattern)] for layer in range(config.layers)]
    mixing = sum(_mixing(config.of_kind(kind), kind) for kind in kinds)
    if beside is not None:
        return 4.0 * products + 6.0 * (beside + mixing)
    return 6.0 * (products + mixing)


def _mixing(config: ModelConfig, kind: str) -> int:
    """Return the products of numbers by which a layer of a kind reads earlier tokens, per token."""
    if config.delta is not None and config.mixer(kind) == "delta":
        return 3 * config.delta.value_heads * config.delta.key_width * config.delta.value_width
    widths = 2 * config.H
    if (latent := config.latent) is not None:
        widths = latent.plain_width + latent.rope_width + latent.value_width
    return config.heads * widths * config.context


def peak(devices: Sequence[Any]) -> float:
    """Return the FLOP/s that `devices` can reach together.

    Known accelerators by data sheet; anything else by timing a float32 matrix product, so on a
    CPU utilisation means "of the best product this machine does".
    """
    chip = chips.of_device(devices[0].device_kind)
    return _measured() if chip is None else chip.flops * len(devices)


@cache
def _measured() -> float:
    return limits.products("float32")

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
LOOKED_UP = ("embed/tokens", "embed/positions", "embed/types", "relative/*", "*norm*", "*bias")


def per_token(config: ModelConfig) -> float:
    """Return training FLOPs per token: 6 per weight in a product, 12 L N H T for attention.

    The convention of PaLM (Chowdhery et al. 2022, appendix B): causal masking is not discounted,
    embedding lookups count nothing, the output table counts once. Of experts those count that a
    token goes to.
    """
    weights = api.active(config)
    times = config.layers // len(config.pattern) if config.layer_weights == "shared" else 1
    products = sum(
        size * (times if path.startswith("layers/") else 1)
        for path, size in weights.items()
        if not tree.match(path, LOOKED_UP)
    )
    if config.output == "tied":
        products += config.V * config.embed_width
    attention = config.layers * config.heads * config.H * config.context
    return 6.0 * products + 12.0 * attention


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

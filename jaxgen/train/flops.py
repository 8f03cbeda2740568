"""Arithmetic of a training step, against what the device could do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.profile import limits

# Dense bfloat16 peak of one device, FLOP/s, from the makers' data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def per_token(config: ModelConfig) -> float:
    """Return training FLOPs per token: 6 per weight in a product, 12 L N H T for attention.

    The convention of PaLM (Chowdhery et al. 2022, appendix B): causal masking is not discounted,
    embedding lookups count nothing, the output table counts once.
    """
    weights = tree.flatten(api.abstract(config))
    products = sum(
        leaf.size
        for path, leaf in weights.items()
        if not path.startswith("embed/") and not tree.match(path, ("*norm*", "*bias"))
    )
    if config.output == "tied":
        products += config.V * config.d_model
    attention = config.layers * config.heads * config.H * config.context
    return 6.0 * products + 12.0 * attention


def peak(devices: Sequence[Any]) -> float:
    """Return the FLOP/s that `devices` can reach together.

    Known accelerators by data sheet; anything else by timing a float32 matrix product, so on a
    CPU utilisation means "of the best product this machine does".
    """
    kind = devices[0].device_kind
    known = [value for name, value in PEAKS.items() if kind.startswith(name)]
    if known:
        return known[-1] * len(devices)
    return limits.products("float32")

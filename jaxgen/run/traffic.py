"""What the devices send each other in a training step: bytes and seconds of one device."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.mesh.settings import AXES, over_groups
from jaxgen.nn.feed import is_gated
from jaxgen.ops.losses import even
from jaxgen.profile.chips import Chip
from jaxgen.train.losses import logits_at_once

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


def of_step(model: ModelConfig, train: Any, sizes: tuple[int, ...], count: int) -> dict[str, float]:
    """Return bytes that one device sends in a step, by collective (ring algorithms)."""
    data, fsdp, expert, tensor, sequence = sizes
    width = WIDTH[model.compute_dtype]
    # Weights are gathered once forward and once backward: recomputing shares the latter. Of the
    # two sums over tensor of a layer, recomputing repeats the one that feed-forward reads.
    passes, sums = 2, 5 if model.remat == "full" else 4
    gates = 3 if is_gated(model.feed) else 2
    there = layer_mean(model, lambda own: own.experts.widths(own.F)[1])
    own = gates * model.layers * model.d_model * there * (1 - 1 / expert)  # that others have
    weights = (count - own) * width / tensor
    tokens = train.batch * model.context / (data * fsdp * expert * sequence)
    stream = tokens * model.d_model * width
    keys = 2 * tokens * layer_mean(model, key_width) / tensor * width
    # The output table is gathered as it is stored, and each device sums its gradient over all
    # chunks of the logits before the devices do.
    table = model.V * model.d_model * WIDTH[model.param_dtype] / tensor * train.accumulate
    weights -= model.V * model.d_model * width / tensor
    apart = data * expert * sequence
    return {
        "all-gather of weights (fsdp)": weights * passes * train.accumulate * (fsdp - 1) / fsdp,
        "reduce-scatter of gradients (fsdp)": weights * train.accumulate * (fsdp - 1) / fsdp,
        "all-gather and reduce-scatter of the output table (fsdp)": 2 * table * (fsdp - 1) / fsdp,
        "all-reduce of the output table's gradient (data)": (
            2 * table / fsdp * (apart - 1) / apart
        ),
        "all-reduce of gradients (data)": 2 * weights / fsdp * train.accumulate * (data - 1) / data,
        "all-reduce of activations (tensor)": (
            sums * model.layers * stream * 2 * (tensor - 1) / tensor
        ),
        "all-gather of keys and values (sequence)": (passes * model.layers * keys * (sequence - 1)),
        "all-gather and reduce-scatter of tokens (expert)": (
            2 * passes * model.layers * stream * (expert - 1)
        ),
    }


def seconds_of(
    traffic: dict[str, float], sizes: tuple[int, ...], chip: Chip, chips: int
) -> dict[str, float]:
    """Return the seconds of what is sent over links, and over the network that joins groups.

    A collective over an axis that crosses them works within each first, so that of its n - 1 parts
    those of the other o - 1 groups alone take the network.
    """
    outer, network = over_groups(sizes, chip.groups(chips)), 0.0
    for name, sent in traffic.items():
        axis = next(i for i, axis in enumerate(AXES) if name.endswith(f"({axis})"))
        network += sent * (outer[axis] - 1) / max(sizes[axis] - 1, 1)
    links = {"links": (sum(traffic.values()) - network) / chip.links}
    return links | ({"network": network / chip.network} if network else {})


def layer_mean(model: ModelConfig, number: Callable[[ModelConfig], int]) -> float:
    """Return a number of a layer, of the kinds of layers as often as the pattern has them."""
    return sum(number(model.of_kind(kind)) for kind in model.pattern) / len(model.pattern)


def key_width(model: ModelConfig) -> int:
    """Return the numbers of a token's keys in a layer."""
    return model.K * model.H


def logits_chunk(model: ModelConfig, train: Any, sizes: tuple[int, ...], platform: str) -> int:
    """Return the positions of a row whose logits exist at once, as `train.losses` has it."""
    most = logits_at_once(platform) * prod(sizes)
    at_once = most * train.accumulate // (train.batch * model.V)
    return even(model.context, train.loss_chunk or max(at_once, 1))

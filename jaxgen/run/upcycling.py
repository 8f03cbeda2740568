"""The feed-forward of a dense model as the experts of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.config_experts import Experts
from jaxgen.errors import ConfigError
from jaxgen.mesh.settings import divisors_near
from jaxgen.nn.experts import LETTERS

# What an upcycled model has that a dense one has not, and that is drawn.
ROUTER = ("router", "router_bias", "choice_bias", "shared_gate")


def upcycle(
    dense: Mapping[str, Any], wanted: Mapping[str, Any], config: ModelConfig, seed: int = 0
) -> dict[str, Any]:
    """Return the folder's parameters with its feed-forward in the experts that the model has.

    Sparse upcycling (Komatsuzaki et al. 2022): the router is drawn, so experts, equal at first,
    part as they see other tokens. A shared expert has the first units of the feed-forward. Experts
    narrower than the rest begin as its slices, those of the first slice first; their router scores
    an expert of each slice alike, so that a token begins with all slices (He et al. 2024). `down`
    makes up for the weights of experts: the model begins as the dense one, exactly so where these
    sum to the same for each token.

    Args:
        dense: parameters by path.
        wanted: {path: shape and dtype} of the model with experts.
        config: of the model with experts.
        seed: of the router of slices; any other is drawn with the rest of the model.

    Raises:
        ConfigError: if the slices do not come out even, or something else would be left out.
    """
    result, own = dict(dense), config.experts
    for path in dense:
        home, feed, name = path.rpartition("/feed/")
        new = wanted.get(f"{home}/experts/{name}")
        if not feed or path in wanted or new is None:
            continue
        d_ff, width = dense[f"{home}/feed/up"].shape[-1], own.width(config.F)
        slices, letters = _slices(own, d_ff, width), LETTERS[name]
        leaf, lead = np.asarray(result.pop(path)), len(new.shape) - len(letters)
        if "F" in letters:
            axis = lead + letters.index("F") - 1
            shared, *cuts = np.split(leaf, range(own.shared, d_ff, width), axis)
        else:  # a bias that is added once
            shared, cuts = leaf, [np.zeros_like(leaf) if own.shared else leaf]
        parts = np.repeat(np.stack(cuts, lead), own.number // len(cuts), lead)
        if name.startswith("down"):  # each slice adds its part of the bias
            parts = parts * (len(cuts) / own.weight_at_first)
            shared = shared if own.shared_gate == "none" else 2 * shared  # sigmoid(0) is 1/2
        result[f"{home}/experts/{name}"] = parts.astype(leaf.dtype)
        if own.shared:
            result[f"{home}/experts/shared/{name}"] = shared
        if slices > 1 and name == "up":
            path = f"{home}/experts/router"
            *shape, number = wanted[path].shape
            drawn = np.random.default_rng(seed).normal(size=(*shape, number // slices))
            result[path] = np.tile(drawn * config.init_std, slices).astype(leaf.dtype)
    return result


def _slices(own: Experts, d_ff: int, width: int) -> int:
    """Return how many experts hold the feed-forward between them, but for what the shared one has.

    Raises ConfigError if a part is left.
    """
    if own.first_dense:
        raise ConfigError(
            f"experts.first_dense={own.first_dense}: all of a dense model's feed-forward goes into "
            f"the experts of its layers; leave it out, or train without init_from"
        )
    rest = d_ff - own.shared
    whole = f"the d_ff={d_ff} of init_from" + (f" less shared={own.shared}" if own.shared else "")
    if rest <= 0:
        raise ConfigError(
            f"experts.shared={own.shared} leaves nothing of the d_ff={d_ff} of init_from; give less"
        )
    slices = rest // width
    if slices * width != rest:
        raise ConfigError(
            f"experts.d_ff={width} cuts {whole} into parts that are not equal; give "
            f"experts.d_ff={rest}, or a divisor of it"
        )
    for name in ("number", "active"):
        if (value := getattr(own, name)) % slices:
            raise ConfigError(
                f"experts.{name}={value} is not a multiple of the {slices} experts of experts.d_ff="
                f"{width} that hold {whole}; nearest that are: {divisors_near(value, slices)}"
            )
    return slices

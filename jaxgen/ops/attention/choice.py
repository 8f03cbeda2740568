"""Which implementation of attention runs: a table by platform, then by what each can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxgen.export import are_known
from jaxgen.mesh import place
from jaxgen.ops.attention import blocked, cudnn, plain, splash
from jaxgen.ops.attention.case import Case
from jaxgen.ops.chance import Chance
from jaxgen.ops.masks import AttentionMask


class Way(NamedTuple):
    """An implementation: whether it can do a case, and how."""

    can: Callable[[Case], bool]
    attend: Callable[[Case], Array]


def _plain(case: Case) -> Array:
    q, k, v, mask, *_ = case
    options = {"scale": case.scale, "cap": case.cap, "bias": case.bias, "drop": case.drop}
    return plain.attend(q, k, v, mask.allowed, **options)


def _is_known(case: Case) -> bool:
    """Return whether all sizes are numbers; kernels are cut to them, the formula is not."""
    return are_known(*case.q.shape, *case.k.shape)


WAYS = {
    "plain": Way(lambda case: True, _plain),
    "blocked": Way(blocked.can, blocked.attend),
    "splash": Way(splash.can, splash.attend),
    "cudnn": Way(cudnn.can, cudnn.attend),
}
# The first that can do a case does it. All equal `plain` but for rounding: tests/ops.
FASTEST = {"tpu": ("splash", "plain"), "gpu": ("cudnn", "plain"), "cpu": ("blocked", "plain")}


def choose(case: Case, platform: str | None = None) -> str:
    """Return the name of the implementation that attends on a platform, the one at hand by default.

    Where only the plain way can, the platform is not even asked for: that would start JAX.
    """
    able = {
        name for name, way in WAYS.items() if name == "plain" or (_is_known(case) and way.can(case))
    }
    if able == {"plain"}:
        return "plain"
    return next(
        name for name in FASTEST.get(platform or place.platform(), ("plain",)) if name in able
    )


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: AttentionMask,
    *,
    scale: float,
    cap: float | None,
    bias: Float[Array, "#B N #T S"] | None = None,
    drop: Chance | None = None,
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T * scale + bias) v under a mask, by the fastest kernel.

    The platform is that of the mesh under which this is traced, else JAX's default. `drop`, if
    any, says which probabilities [B, K, N / K, T, S] stay; cap: see `soft_cap`.
    """
    case = Case(q, k, v, mask, scale, cap, bias, drop)
    return WAYS[choose(case)].attend(case)

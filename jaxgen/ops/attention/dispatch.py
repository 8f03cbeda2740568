"""Choice of the attention kernel: a table by platform, then the first that supports the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxgen.export import are_known
from jaxgen.mesh import place
from jaxgen.ops.attention import cudnn, plain, splash
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.cpu import blocked_attention
from jaxgen.ops.masks import AttentionMask
from jaxgen.ops.random import DropoutRng


class Kernel(NamedTuple):
    """An implementation of attention, and whether it supports given arguments."""

    supports: Callable[[AttentionArgs], bool]
    attend: Callable[[AttentionArgs], Array]


def _plain(args: AttentionArgs) -> Array:
    q, k, v, mask, *_ = args
    options = {"scale": args.scale, "cap": args.cap, "bias": args.bias, "drop": args.drop}
    return plain.attend(q, k, v, mask.allowed, **options, sinks=args.sinks)


def _has_known_sizes(args: AttentionArgs) -> bool:
    """Return whether no size is symbolic; kernels are compiled for given sizes, `plain` is not."""
    return are_known(*args.q.shape, *args.k.shape)


KERNELS = {
    "plain": Kernel(lambda args: True, _plain),
    "blocked": Kernel(blocked_attention.supports, blocked_attention.attend),
    "splash": Kernel(splash.supports, splash.attend),
    "cudnn": Kernel(cudnn.supports, cudnn.attend),
}
# The first that supports the arguments runs. All equal `plain` but for rounding: tests/ops.
FASTEST = {"tpu": ("splash", "plain"), "gpu": ("cudnn", "plain"), "cpu": ("blocked", "plain")}


def choose(args: AttentionArgs, platform: str | None = None) -> str:
    """Return the name of the kernel for a platform, by default that of the mesh or of JAX.

    Where only `plain` supports the arguments the platform is not looked up: that would start JAX.
    """
    only_plain = args.sinks is not None or not _has_known_sizes(args)
    kernels = {"plain": KERNELS["plain"]} if only_plain else KERNELS
    supported = {name for name, kernel in kernels.items() if kernel.supports(args)}
    if supported == {"plain"}:
        return "plain"
    return next(
        name for name in FASTEST.get(platform or place.platform(), ("plain",)) if name in supported
    )


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K W"],
    mask: AttentionMask,
    *,
    scale: float,
    cap: float | None,
    bias: Float[Array, "#B N #T S"] | None = None,
    drop: DropoutRng | None = None,
    sinks: Float[Array, "N"] | None = None,
) -> Float[Array, "B T N W"]:
    """Return softmax(q k^T * scale + bias) v under a mask, by the fastest kernel.

    The platform is that of the mesh under which this is traced, else JAX's default. `drop`, if
    any, says which probabilities [B, K, N / K, T, S] stay; cap: see `soft_cap`.
    sinks: of each head, the score of attending to nothing.
    """
    args = AttentionArgs(q, k, v, mask, scale, cap, bias, drop, sinks)
    return KERNELS[choose(args)].attend(args)

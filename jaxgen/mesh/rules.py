"""The one table that lays logical axes (`jaxgen.legend`) on the axes of the mesh.

Parameters are stored more widely spread than they are used: fully-sharded data parallelism
(Rajbhandari et al. 2020, "ZeRO") keeps the model width of each weight on the fsdp axis, and gathers
one layer at a time where it is multiplied. Tensor parallelism is Megatron's (Shoeybi et al. 2019);
with sequence parallelism queries stay where their positions are, and keys and values are gathered.
Devices along the expert axis have rows of their own, and share all weights but those of experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

Rules = Mapping[str, tuple[str, ...]]

_SHARED = dict.fromkeys("NKFV", ("tensor",)) | {"E": ("expert",)}
STORED: Rules = {"D": ("fsdp",)} | _SHARED
USED: Rules = {"B": ("data", "fsdp", "expert"), "T": ("sequence",)} | _SHARED


def spec(
    letters: str,
    shape: Sequence[int],
    rules: Rules,
    sizes: Mapping[str, int],
) -> PartitionSpec:
    """Return the partition of an array with these axes; a dimension that can't be divided is whole.

    sizes: of the mesh axes that may be used; one that is absent or 1 is none. A mesh axis is used
    once: the first letter that wants it gets it.
    """
    used: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for place, (letter, size) in enumerate(zip(letters, shape, strict=True)):
        axes = tuple(a for a in rules.get(letter, ()) if sizes.get(a, 1) > 1 and a not in used)
        if letter == "E" and letters[:place].strip("L"):
            axes = ()  # of a router, whose scores of all experts each token needs
        fits = axes and size % _product(axes, sizes) == 0
        parts.append(axes if fits else None)
        used |= set(axes) if fits else set()
    return PartitionSpec(*parts)


def stored(letters: str, shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """Return how a parameter with these axes is kept.

    Norm scales and biases of the model width are kept whole: gathering them would cost more
    than they weigh.
    """
    return spec(divided(letters), shape, STORED, sizes)


def divided(letters: str) -> str:
    """Return the letters of a parameter, "." in the place of those that are kept whole."""
    return letters.replace("D", ".") if len(letters.replace("L", "")) < 2 else letters


def _product(axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    result = 1
    for axis in axes:
        result *= sizes[axis]
    return result

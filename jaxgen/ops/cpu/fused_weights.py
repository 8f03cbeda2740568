"""Weights with the same input, stored as one: one matmul costs a CPU less than several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from jaxtyping import Array, Float

from jaxgen.pytree import register_dataclass

SIGN = "+"  # between the names of fused weights


@register_dataclass
@dataclass(frozen=True)
class FusedWeights:
    """One weight in place of several in a tree of parameters; `unfuse` is the inverse.

    shapes: the output axes of each. adapters: around each, from the inside out (`ops.adapted`).
    """

    leaf: Any  # `TransposedWeight` or `Int8`, whose one output axis holds them one after another
    shapes: tuple[tuple[int, ...], ...] = field(metadata={"static": True})
    adapters: tuple[tuple[Any, ...], ...] = ()

    @classmethod
    def of(cls, leaves: Sequence[Any]) -> FusedWeights:
        """Return leaves of one type, each with one contracted axis, as one."""
        return cls(type(leaves[0]).join(leaves), tuple(leaf.out_axes for leaf in leaves))

    def slices(self) -> list[Any]:
        """Return each of the weights, as a leaf."""
        begins = [sum(map(prod, self.shapes[:i])) for i in range(len(self.shapes))]
        parts: list[Any] = [
            FusedSlice(self.leaf, *part) for part in zip(begins, self.shapes, strict=True)
        ]
        for i, adapters in enumerate(self.adapters):
            for adapter in adapters:
                parts[i] = adapter.around(parts[i])
        return parts

    def with_adapter(self, index: int, adapter: Any) -> FusedWeights:
        """Return the weights with one more adapter around one of them."""
        held: list[Any] = list(self.adapters or ((),) * len(self.shapes))
        held[index] = (*held[index], adapter)
        return replace(self, adapters=tuple(held))


@register_dataclass
@dataclass(frozen=True)
class FusedSlice:
    """One of the fused weights: its matmul is a slice of the matmul with all of them.

    The compiler merges the equal matmuls of all slices into one.
    """

    leaf: Any
    begin: int = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})

    def contract(self, equation: str, x: Float[Array, "B T D"], dtype: str) -> Array:
        """Return x [B, T, D] times this weight: [B, T, *shape]."""
        del equation
        y = self.leaf.contract("BTD,DF->BTF", x, dtype)
        y = y[..., self.begin : self.begin + prod(self.shape)]
        return y.reshape(*y.shape[:-1], *self.shape)

    def as_leaf(self) -> Any:
        """Return the weight as a leaf of its own."""
        return self.leaf.cut(self.begin, self.shape)


def fuse(weights: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the leaves of a module with those of `names` as one."""
    rest = {name: leaf for name, leaf in weights.items() if name not in names}
    return {SIGN.join(names): FusedWeights.of([weights[name] for name in names])} | rest


def unfuse(tree: Any) -> Any:
    """Return a tree of parameters with a `FusedSlice` for each of the fused weights."""
    if not isinstance(tree, Mapping):
        return tree
    result = {}
    for name, node in tree.items():
        if isinstance(node, FusedWeights):
            result |= zip(name.split(SIGN), node.slices(), strict=True)
        else:
            result[name] = unfuse(node)
    return result

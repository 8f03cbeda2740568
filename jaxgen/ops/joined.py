"""Weights that meet the same input, kept as one: a CPU pays for each product that it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
from jaxtyping import Array, Float

SIGN = "+"  # between the names of weights that lie together


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Joined:
    """One weight in place of several in a tree of parameters; `opened` puts those back.

    shapes: the output axes of each.
    """

    leaf: Any  # `Turned` or `Int8`, of which these axes flat are one
    shapes: tuple[tuple[int, ...], ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, leaves: Sequence[Any]) -> Joined:
        """Return leaves of one kind, `Turned` or `Int8`, as one; each with one inner axis."""
        return cls(type(leaves[0]).join(leaves), tuple(leaf.outer for leaf in leaves))

    def parts(self) -> list[Part]:
        """Return each of them, as a leaf."""
        begins = [sum(map(prod, self.shapes[:place])) for place in range(len(self.shapes))]
        return [Part(self.leaf, *place) for place in zip(begins, self.shapes, strict=True)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """A weight that lies among others: a product with it is cut from the product with them all.

    Of equal products the compiler keeps one.
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

    def alone(self) -> Any:
        """Return it as a leaf of its own."""
        return self.leaf.cut(self.begin, self.shape)


def joined(weights: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the leaves of a module with these as one."""
    rest = {name: leaf for name, leaf in weights.items() if name not in names}
    return {SIGN.join(names): Joined.of([weights[name] for name in names])} | rest


def opened(tree: Any) -> Any:
    """Return a tree of parameters with parts in the place of what is joined."""
    if not isinstance(tree, Mapping):
        return tree
    found = {}
    for name, node in tree.items():
        if isinstance(node, Joined):
            found |= zip(name.split(SIGN), node.parts(), strict=True)
        else:
            found[name] = opened(node)
    return found

"""A weight with an adapter beside it: low rank (LoRA, DoRA), a vector of factors (IA3), or tokens.

Virtual tokens (prefix and prompt tuning) stand before those of the text: as keys and values around
the weights that make those of a layer, or as vectors where an encoder reads both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.ops.contract import contract
from jaxgen.ops.random import DropoutRng, dropout
from jaxgen.pytree import register_dataclass

RANK = "R"  # the letter of the axis between the two factors


@register_dataclass
@dataclass(frozen=True)
class Adapted:
    """gain * (weight + scale * a b) applied to before * x; what is None is left out.

    With `rows="each"` every array has a leading axis of the batch's rows, so that each row has an
    adapter of its own; then a is [R, contracted axes], and b holds the scale. Without a weight it
    is an adapter that `models.serving.join` puts around one. Inputs of `a` are dropped out at
    `rate` where there is a key (Hu et al. 2022).
    """

    weight: Any = None  # an array or another leaf
    a: Any = None  # [contracted axes, R]
    b: Any = None  # [R, output axes]
    scale: Any = None  # []
    gain: Any = None  # [output axes]
    before: Any = None  # [contracted axes]
    key: Any = None  # PRNGKeyArray
    rate: float = field(default=0.0, metadata={"static": True})
    rows: str = field(default="shared", metadata={"static": True})
    virtual: Any = None  # [n, output axes], of virtual tokens: attention alone reads them

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.weight.out_axes

    def around(self, weight: Any) -> Adapted:
        """Return the adapter around a weight."""
        return replace(self, weight=weight)

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, the adapted weight)."""
        inputs, _, out = equation.partition("->")
        left, right = inputs.split(",")
        inner = "".join(letter for letter in right if letter not in out)
        outer = "".join(letter for letter in right if letter in out)
        x = x.astype(dtype)
        if self.before is not None:
            x = x * self._beside(self.before, x, len(inner))
        y = contract(equation, x, self.weight, dtype=dtype)
        gain = None if self.gain is None else self._beside(self.gain, y, len(outer))
        if self.a is None:
            return y if gain is None else y * gain
        read = x
        if self.rate and self.key is not None:
            read = dropout(x, DropoutRng(self.key, 1 - self.rate, 0, x.shape[0]))
            if gain is not None:  # DoRA drops what its magnitudes add, never the weight itself
                more = contract(equation, read, self.weight, dtype=dtype) * (gain - 1)
                return y + more + self._low_rank(left, inner, outer, read, dtype) * gain
        y = (y + self._low_rank(left, inner, outer, read, dtype)).astype(dtype)
        return y if gain is None else y * gain

    def _low_rank(self, left: str, inner: str, outer: str, x: Array, dtype: str) -> Array:
        """Return scale * x a b."""
        lead = left.removesuffix(inner)
        if self.rows == "shared":
            low = contract(f"{left},{inner}{RANK}->{lead}{RANK}", x, self.a, dtype=dtype)
            low = low * jnp.asarray(self.scale, dtype)
            return contract(f"{lead}{RANK},{RANK}{outer}->{lead}{outer}", low, self.b, dtype=dtype)
        users, shape = self.a.shape[0], x.shape[: len(lead)]
        # As PEFT does, in the type of the factors: to round them first costs a CPU more.
        x = x.astype(jnp.promote_types(x.dtype, self.a.dtype))
        # Beams of a row follow one another: they are further positions of it.
        x = x.reshape(users, -1, prod(x.shape[len(lead) :]))
        a = self.a.reshape(*self.a.shape[:2], x.shape[-1])
        b = self.b.reshape(*self.b.shape[:2], -1)
        if x.shape[1] == 1:  # a CPU multiplies vectors in half the time of matrices of one row
            low = jnp.einsum("BI,BRI->BR", x[:, 0], a)
            y = jnp.einsum("BR,BRO->BO", low, b)
        else:
            y = jnp.einsum("BTR,BRO->BTO", jnp.einsum("BTI,BRI->BTR", x, a), b)
        return y.reshape(*shape, *self.b.shape[2:])

    def _beside(self, factors: Array, x: Array, axes: int) -> Array:
        """Return factors on the last axes of x, in its dtype, each row's its own or all alike."""
        factors = factors.astype(x.dtype)
        if self.rows == "shared":
            return factors
        count = x.shape[0] // factors.shape[0]
        factors = jnp.repeat(factors, count, axis=0) if count > 1 else factors
        shape = (x.shape[0], *(1 for _ in x.shape[1 : x.ndim - axes]), *factors.shape[1:])
        return factors.reshape(shape)


@register_dataclass
@dataclass(frozen=True)
class VirtualTokens:
    """Vectors of virtual tokens [n, D], which an encoder reads before those of a text."""

    vectors: Any


def virtual_of(leaf: Any) -> Array | None:
    """Return the keys or values of virtual tokens beside a weight, if there are any."""
    while isinstance(leaf, Adapted):
        if leaf.virtual is not None:
            return leaf.virtual
        leaf = leaf.weight
    return None


def num_virtual(params: Any) -> int:
    """Return how many virtual tokens the layers of these parameters have keys and values of."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Adapted))
    virtual = (virtual_of(leaf) for leaf in leaves)
    return max((keys.shape[-3] for keys in virtual if keys is not None), default=0)


def after_virtual(leaf: Any, x: Float[Array, "B S K H"]) -> Float[Array, "B n K H"]:
    """Return keys or values, those of the virtual tokens beside their weight before them."""
    virtual = virtual_of(leaf)
    if virtual is None:
        return x
    virtual = virtual if virtual.ndim == x.ndim else virtual[None]
    virtual = jnp.broadcast_to(virtual, (x.shape[0], *virtual.shape[1:]))
    return jnp.concatenate([virtual.astype(x.dtype), x], axis=1)


def layer_of(adapter: Any, index: int) -> Any:
    """Return one layer of a tree whose leaves are stacked along the layers."""
    return jax.tree.map(lambda leaf: leaf[index], adapter)

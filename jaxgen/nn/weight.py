"""The one place where a weight is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxgen.legend import LEGEND
from jaxgen.ops.contract import PerRow

Init = Callable[..., jax.Array]
STACK_AXIS = "L"


class Boxed(nn.Partitioned):
    """A fresh weight with its letters, which no mesh knows: `mesh/rules.py` says where it lives."""

    def unbox(self, apply_constraint: bool = True) -> Any:
        """Return the bare weight, where Linen would lay it on mesh axes named by the letters."""
        return self.value


def weight(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: str, init: Init, dtype: str
) -> Any:
    """Return the weight `name` of `module`; `axes` holds one letter of the legend per dimension.

    While initialising it makes `init(key, shape, dtype)` and boxes the axes with it; on apply it
    hands back whatever leaf the tree holds (an array, or anything `contract` understands).
    """
    assert len(axes) == len(shape) and set(axes) <= set(LEGEND), (name, shape, axes)
    if module.is_initializing():

        def boxed(key: jax.Array, *args: Any) -> Boxed:
            return Boxed(init(key, *args), names=tuple(axes))

        return module.param(name, boxed, shape, jax.numpy.dtype(dtype))
    leaf = module.get_variable("params", name)
    if leaf is None:
        path = "/".join((*module.path, name))
        raise KeyError(f"params hold no {path!r}; were they made for another config?")
    return leaf.values if isinstance(leaf, PerRow) else leaf

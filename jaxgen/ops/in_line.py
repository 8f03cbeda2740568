"""Values of each step through the depth, apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jaxgen.export import serializable


@serializable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InLine:
    """A tree for each step through the depth, in the place of one whose arrays have an L axis.

    A step takes what is its own out of such an array, which copies it: weights in a scan, keys in a
    product. In decoding, where each is read once a token, that doubles the traffic. Steps that are
    in line are compiled one after another, and each reads what it is given.
    """

    steps: tuple[Any, ...]

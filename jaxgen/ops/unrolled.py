"""The values of layers that are unrolled instead of scanned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxgen.pytree import register_dataclass


@partial(
    register_dataclass, serialized_name="jaxgen.ops.in_line.InLine"
)  # as in files written before
@dataclass(frozen=True)
class UnrolledLayers:
    """One tree per step through the depth, instead of one tree whose arrays have an L axis.

    A scan slices such arrays in each step, which copies weights and keys. Decoding reads each of
    them once a token, so the copy doubles the memory traffic. Unrolled steps are compiled one
    after another, and each reads its own arrays.
    """

    steps: tuple[Any, ...]

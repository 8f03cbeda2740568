"""Attention: one formula, and the kernels that compute it faster where they can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.ops.attention.dispatch import attend
    from jaxgen.ops.attention.plain import soft_cap

__all__ = ["attend", "soft_cap"]

__getattr__, __dir__ = lazy.attach(__name__)

"""What a logits processor is: a frozen dataclass that is called with logits [B, V].

Its fields are leaves of a pytree, so another temperature compiles nothing anew, and a setting may
be an array [B] with a value for each request. Processors are classes with names of functions, as
PEP 8 has it for what is used as one: `top_k(5)` makes it, `top_k(5)(logits)` applies it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

import jax.numpy as jnp

from jaxgen import arguments
from jaxgen.pytree import register_dataclass

BANNED = -jnp.inf
T = TypeVar("T")


def static(default: Any) -> Any:
    """Return a dataclass field that is static under jit: part of the pytree's structure."""
    return field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True)
def processor(**rules: arguments.Rule) -> Callable[[type[T]], type[T]]:
    """Return the decorator of a processor's class, whose arguments are checked.

    rules: by field, the range of its values; ConfigErrors begin with the name of the class.
    """

    def decorate(kind: type[T]) -> type[T]:
        kind = register_dataclass(dataclass(frozen=True)(kind))
        init: Any = kind.__init__
        init.__name__ = kind.__name__
        kind.__init__ = arguments.checked(**rules)(init)
        return kind

    return decorate

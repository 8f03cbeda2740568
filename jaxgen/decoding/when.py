"""Processors that a batch skips while none of its requests needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Int

from jaxgen.decoding.chain import Chain
from jaxgen.decoding.history import History, Requires, advance_states, init_states
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class When:
    """A part of a chain that runs only where `active` is true, so that it costs nothing elsewhere.

    active is data: one program serves batches with the part and without it. Where it is false, the
    settings of all requests must be neutral: then the logits are the same either way.
    """

    name: ClassVar[str] = "when"
    active: Any  # Bool[Array, ""]
    part: Chain

    @property
    def requires(self) -> Requires:
        """Return what its processors read besides logits."""
        return self.part.requires

    def begin(self, history: History) -> tuple[Any, ...]:
        """Return the states of its processors after the tokens drawn so far."""
        return init_states(self.part, history).states

    def advance(self, states: tuple[Any, ...], new: Int[Array, "B"]) -> tuple[Any, ...]:
        """Return the states after one more token."""
        return advance_states(self.part, states, new)

    def __call__(
        self,
        logits: Float[Array, "B V"],
        history: History | None = None,
        states: tuple[Any, ...] = (),
    ) -> Float[Array, "B V"]:
        history = None if history is None else history._replace(states=states)
        return jax.lax.cond(self.active, self.part.process, _unchanged, logits, history)


def _unchanged(logits: Array, history: History | None) -> Array:
    return logits

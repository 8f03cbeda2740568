"""What an encoder hands to the decoder that reads it."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from jaxgen.export import serializable


@serializable
class Memory(NamedTuple):
    """An encoder's last hidden states.

    segments: 0 is padding, which nobody reads; a decoder's token reads the states of its own
    segment. taps: the activations that were asked for.
    """

    state: Float[Array, "B S D"]
    segments: Int[Array, "B S"]
    taps: Any = ()

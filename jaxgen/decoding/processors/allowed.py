"""Tokens that a user's own function allows, traced into the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen import arguments
from jaxgen.decoding.history import History, Requires
from jaxgen.decoding.processors.truncation import BANNED, static
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

Allow = Callable[..., Any]  # (tokens [S], length [], *data) -> bool [V]


@register_dataclass
@dataclass(frozen=True)
class Allowed:
    """Bans what `function` does not allow after the tokens so far."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "allowed_tokens"
    data: Any
    function: Allow = static(None)

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        tokens, length = history.tokens_and_length()
        mask = jax.vmap(lambda *row: self.function(*row, *self.data))(tokens, length)
        if mask.shape != logits.shape or mask.dtype != jnp.bool_:
            raise ConfigError(
                f"allowed_tokens: the function gave {mask.dtype}{list(mask.shape[1:])}; it must "
                f"give a bool for each of the {logits.shape[-1]} tokens"
            )
        return jnp.where(mask, logits, BANNED)


@arguments.checked
def allowed_tokens(function: Allow, *data: Any) -> Allowed:
    """Return a processor that allows what function(tokens, length, *data) says, a bool per token.

    It is called once a request, with its prompt and draws [S], of which the first `length` are
    real, and is compiled into the loop: a pure function of JAX, the same object each time (another
    one compiles again). data: arrays that it reads, which may change without compiling.
    transformers' prefix_allowed_tokens_fn; a fixed set of sequences is cheaper as a trie
    (`automaton.trie`). Raises ConfigError where it gives anything else.
    """
    return Allowed(tuple(data), function)

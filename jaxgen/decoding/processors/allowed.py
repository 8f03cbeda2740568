"""Tokens that a user's own function allows, traced into the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen import arguments
from jaxgen.decoding.history import History, Requires
from jaxgen.decoding.processors.base import BANNED, processor, static
from jaxgen.errors import ConfigError

AllowFunction = Callable[..., Any]  # (tokens [S], length [], *data) -> bool [V]


@processor()
class Allowed:
    """Ban what `function` does not allow after the tokens so far."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "allowed_tokens"
    data: Any
    function: AllowFunction = static(None)

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
def allowed_tokens(function: AllowFunction, *data: Any) -> Allowed:
    """Return a processor that allows the tokens for which a function of the text so far is True.

    transformers' prefix_allowed_tokens_fn, compiled into the loop. For a fixed set of sequences
    `structure.trie` is cheaper.

    Args:
        function: (tokens [S], length, *data) -> bool [V], called for each request with its prompt
            and draws, of which the first `length` are real. A pure function of JAX; another object
            compiles anew. Raises ConfigError where it gives anything else.
        data: arrays that the function reads; they may change without compiling.

    >>> history = History(jnp.array([0]), jnp.array([[1]]), jnp.array([1]))
    >>> rising = jaxgen.allowed_tokens(lambda tokens, n: jnp.arange(3) > tokens[n - 1])
    >>> rising(jnp.zeros((1, 3)), history)
    Array([[-inf, -inf,   0.]], dtype=float32)
    """
    return Allowed(tuple(data), function)

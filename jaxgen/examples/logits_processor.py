"""Write a logits processor: a function of logits, or a dataclass that also reads earlier tokens.

`jaxgen.chain` takes processors in reading order. A plain function sees logits [B, V]; one with
`requires = "tokens"` is called with the request's history as well. Settings that are leaves of a
pytree can change from call to call without compiling anew, and differ from row to row.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import jaxgen
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class NoImmediateRepeat:
    """Lowers the logit of the token that was just read by `penalty`, a number or an array [B]."""

    penalty: Any
    requires: ClassVar[str] = "tokens"

    def __call__(self, logits, history):
        tokens, length = history.tokens_and_length()  # [B, S] and [B]: what each request has so far
        last = jnp.take_along_axis(tokens, length[:, None] - 1, axis=1)
        repeated = jnp.arange(logits.shape[1]) == last
        return logits - jnp.where(repeated, jnp.reshape(self.penalty, (-1, 1)), 0.0)


def even_only(logits):
    """Forbid odd token ids; a function of logits alone needs nothing else."""
    return jnp.where(jnp.arange(logits.shape[-1]) % 2 == 0, logits, -jnp.inf)


def main() -> None:
    config = jaxgen.ModelConfig(
        vocab_size=32, context=64, layers=1, d_model=32, heads=2, positions="rope"
    )
    params = jaxgen.init(config, jax.random.key(0))
    prompt = jnp.array([[2, 4, 6], [8, 10, 12]])
    # The first row may repeat itself, the second may not: one program, settings by row.
    penalty = jnp.array([0.0, jnp.inf])
    sample = jaxgen.chain(even_only, NoImmediateRepeat(penalty), jaxgen.temperature(0.7))
    out = jaxgen.generate(params, config, prompt, jax.random.key(1), length=24, sample=sample)
    print(out)
    assert (out % 2 == 0).all()
    assert not (out[1, 1:] == out[1, :-1]).any()
    print("only even tokens, and no immediate repeat in the second row")


if __name__ == "__main__":
    main()

"""Samplers: processors of logits, chained in reading order, then one draw.

Processors are pytrees whose settings are leaves, so changing a temperature does not recompile,
and a setting may be an array [B] with a value for each request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen import arguments
from jaxgen.decoding import past as pasts
from jaxgen.decoding.past import NEEDS, Needs, Past
from jaxgen.decoding.record import record
from jaxgen.decoding.truncation import temperature
from jaxgen.errors import ConfigError
from jaxgen.ops.largest import argmax
from jaxgen.ops.random import categorical
from jaxgen.varying import vary_alike

NOT_FINITE = -1  # drawn where nothing can be: NaN logits, or every token banned


@record
@dataclass(frozen=True)
class Chain:
    """Processors in reading order; calling it draws one token per row.

    A processor is called with the logits, and with the `Past` if its `needs` says that it reads
    one; any function of logits is a processor too. One that needs "tokens" may keep a state, which
    it is then called with: `begin(past)` makes it, `advance(state, new [B])` goes on.
    """

    made_by: ClassVar[str] = "chain"
    processors: tuple[Any, ...]

    @property
    def needs(self) -> Needs:
        """Return the most that any processor reads besides logits."""
        levels = [NEEDS.index(pasts.needs(processor)) for processor in self.processors]
        return NEEDS[max(levels, default=0)]

    def process(self, logits: Float[Array, "B V"], past: Past | None = None) -> Array:
        """Return the logits after all processors; -inf marks what can't be drawn."""
        for place, processor in enumerate(self.processors):
            if pasts.needs(processor) == "nothing":
                logits = processor(logits)
                continue
            if past is None or (pasts.needs(processor) == "tokens" and past.tokens is None):
                raise ConfigError(missing(processor))
            kept = past.states[place : place + 1]
            state = kept[0] if kept else None
            logits = processor(logits, past) if state is None else processor(logits, past, state)
        return logits

    def __call__(
        self, logits: Float[Array, "B V"], keys: Key[Array, "B"], past: Past | None = None
    ) -> Int[Array, "B"]:
        """Return one draw per row from softmax(process(logits)), each row with its own key.

        NOT_FINITE for a row whose processed logits hold NaN, or leave no token.
        """
        logits = self.process(logits.astype(jnp.float32), past)
        logits, keys = vary_alike((logits, keys))
        # Noise for a whole vocabulary takes longer than a layer; a row with one token needs none.
        certain = jnp.all(jnp.sum(jnp.isfinite(logits), axis=-1) == 1)
        drawn = jax.lax.cond(certain, lambda: argmax(logits), lambda: categorical(keys, logits))
        return checked(drawn, logits)


def checked(drawn: Int[Array, "B"], logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Return `drawn`, with NOT_FINITE where the logits hold NaN or nothing finite."""
    usable = ~jnp.any(jnp.isnan(logits), -1) & jnp.any(jnp.isfinite(logits), -1)
    return jnp.where(usable, drawn, NOT_FINITE).astype(jnp.int32)


def missing(sampler: Any) -> str:
    """Return the line that says which processors read what decoding was not given."""
    parts = getattr(sampler, "processors", (sampler,))
    names = [getattr(part, "name", type(part).__name__) for part in parts]
    reading = [
        name for name, part in zip(names, parts, strict=True) if pasts.needs(part) != "nothing"
    ]
    return (
        f"{', '.join(reading)} reads earlier tokens, but no prompt was given; "
        f"pass prompt=ids [B, S] and lengths=[B] (to a chain: past=)"
    )


def one_processor(path: str, value: Any, call: arguments.Call) -> None:
    """Raise ConfigError for what a chain can't apply: a chain, or a function that makes one."""
    if isinstance(value, Chain):
        raise ConfigError(f"{path} is a chain; give its processors: chain(*one.processors)")
    if isinstance(value, type | FunctionType) and value.__module__.startswith("jaxgen.decoding"):
        raise ConfigError(f"{path}={value.__name__} is no processor, but makes one; call it")


def sampler(path: str, value: Any, call: arguments.Call) -> None:
    """Raise ConfigError for a processor where a chain of them is wanted."""
    if type(value).__module__.startswith("jaxgen.decoding") and not isinstance(value, Chain):
        name = type(value).__name__
        raise ConfigError(f"{path}={name}(...) is a processor; make it a chain: chain({path})")
    one_processor(path, None if isinstance(value, Chain) else value, call)


@arguments.checked(processors=one_processor)
def chain(*processors: Callable[..., Any]) -> Chain:
    """Return a sampler that applies `processors` in the order written, then draws."""
    return Chain(tuple(processors))


def greedy() -> Chain:
    """Return the sampler that takes the likeliest token, the first of equals."""
    return chain(temperature(0.0))

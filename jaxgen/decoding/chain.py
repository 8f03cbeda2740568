"""Samplers: logits processors applied in reading order, then one draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen import arguments
from jaxgen.decoding.history import (
    NO_TOKEN,
    REQUIRES,
    History,
    Requires,
    init_states,
    required_history,
)
from jaxgen.decoding.processors.structure import Automaton
from jaxgen.decoding.processors.truncation import temperature
from jaxgen.errors import ConfigError
from jaxgen.ops.cpu.argmax import argmax
from jaxgen.ops.random import categorical
from jaxgen.pytree import register_dataclass
from jaxgen.varying import vary_alike

NOT_FINITE = -1  # the token of a row with NaN logits, or with every token banned


@register_dataclass
@dataclass(frozen=True)
class Chain:
    """Processors in reading order; calling it draws one token per row.

    A processor is a function of logits; if it has the attribute `requires` ("num_generated" or
    "tokens"), it is called with (logits, History). One that requires "tokens" may keep a state and
    is then called with (logits, History, state): `begin(history)` returns the initial state,
    `advance(state, new [B])` the next one. Its method `validate(length, beams)`, if it has one,
    raises ConfigError before anything is compiled.
    """

    made_by: ClassVar[str] = "chain"
    processors: tuple[Any, ...]

    @property
    def requires(self) -> Requires:
        """Return what the processors read besides logits."""
        levels = [REQUIRES.index(required_history(processor)) for processor in self.processors]
        return REQUIRES[max(levels, default=0)]

    @property
    def keeps_states(self) -> bool:
        """Return whether a processor keeps a state from token to token."""
        return any(hasattr(processor, "begin") for processor in self.processors)

    def process(self, logits: Float[Array, "B V"], history: History | None = None) -> Array:
        """Return the logits after all processors; -inf marks banned tokens."""
        return self.stages(logits, history)[-1]

    def stages(self, logits: Float[Array, "B V"], history: History | None = None) -> list[Array]:
        """Return the logits as they are, and after each of the processors."""
        stages = [logits]
        for index, processor in enumerate(self.processors):
            if required_history(processor) == "nothing":
                stages.append(_same_shape(processor, stages[-1], processor(stages[-1])))
                continue
            needs_tokens = required_history(processor) == "tokens"
            if history is None or (needs_tokens and history.tokens is None):
                raise ConfigError(missing_prompt(processor))
            state = history.states[index] if history.states else None
            inputs = (history,) if state is None else (history, state)
            stages.append(_same_shape(processor, stages[-1], processor(stages[-1], *inputs)))
        return stages

    def __call__(
        self, logits: Float[Array, "B V"], keys: Key[Array, "B"], history: History | None = None
    ) -> Int[Array, "B"]:
        """Return one draw per row from softmax(process(logits)), each row with its own key.

        NOT_FINITE for a row whose processed logits hold NaN, or leave no token.
        """
        logits = self.process(logits.astype(jnp.float32), history)
        logits, keys = vary_alike((logits, keys))
        # Noise for a whole vocabulary takes longer than a layer; a row with one token needs none.
        certain = jnp.all(jnp.sum(jnp.isfinite(logits), axis=-1) == 1)
        tokens = jax.lax.cond(certain, lambda: argmax(logits), lambda: categorical(keys, logits))
        return mark_not_finite(tokens, logits)


def _same_shape(processor: Any, logits: Array, result: Any) -> Array:
    """Return a processor's result; ConfigError unless it has the shape of what it was given."""
    if getattr(result, "shape", None) != logits.shape:
        name = getattr(processor, "__name__", type(processor).__name__)
        shape = getattr(result, "shape", type(result).__name__)
        raise ConfigError(
            f"the logits processor {name} returned {shape}; it must return logits of the shape "
            f"that it is given, [B, V] = {list(logits.shape)}"
        )
    return result


def mark_not_finite(tokens: Int[Array, "B"], logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Return the tokens, with NOT_FINITE where the logits hold NaN or nothing finite."""
    usable = ~jnp.any(jnp.isnan(logits), -1) & jnp.any(jnp.isfinite(logits), -1)
    return jnp.where(usable, tokens, NOT_FINITE).astype(jnp.int32)


def missing_prompt(sampler: Any) -> str:
    """Return the error message for processors that read earlier tokens without a prompt."""
    parts = getattr(sampler, "processors", (sampler,))
    names = [getattr(part, "name", type(part).__name__) for part in parts]
    reading = [
        name for name, part in zip(names, parts, strict=True) if required_history(part) != "nothing"
    ]
    return (
        f"{', '.join(reading)} reads earlier tokens, but no prompt was given; "
        f"pass prompt=ids [B, S] and lengths=[B] (to a chain: history=)"
    )


def initial_history(
    sample: Any,
    batch: Any,
    length: int,
    prompt: Any,
    lengths: Any,
    *,
    start: Any = 0,
    requires: Requires | None = None,
    states: tuple[Any, ...] | None = None,
) -> History | None:
    """Return the History before the first of `length` new tokens; None if nothing requires one.

    start: number of tokens at the end of the prompt that were generated already.
    requires: what the caller reads; None for what the sampler requires.
    states: of the processors after these tokens; None: they are found by following the tokens.
    Raises ConfigError if tokens are required and there is no prompt, or for states of another
    sampler.
    """
    keeps = [hasattr(processor, "begin") for processor in getattr(sample, "processors", ())]
    if states and keeps != [state is not None for state in states]:
        raise ConfigError(
            f"states={states!r:.60} is not what a chunk of this sampler returned; pass the states "
            f"of the chunk before, or None"
        )
    requires = required_history(sample) if requires is None else requires
    if requires == "nothing":
        return None
    num_generated = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))
    if requires == "num_generated":
        return History(num_generated)
    if prompt is None:
        raise ConfigError(missing_prompt(sample))
    prompt = jnp.asarray(prompt, jnp.int32)
    room = jnp.full((prompt.shape[0], length), NO_TOKEN, jnp.int32)
    tokens = jnp.concatenate([prompt, room], axis=1)
    valid = jnp.full(prompt.shape[0], prompt.shape[1]) if lengths is None else jnp.asarray(lengths)
    history = History(num_generated, tokens, valid.astype(jnp.int32))
    return init_states(sample, history) if states is None else history._replace(states=states)


def one_processor(path: str, value: Any, call: arguments.Call) -> None:
    """Raise ConfigError for a value that is no processor: a chain, or the maker of a processor."""
    if isinstance(value, Chain):
        raise ConfigError(f"{path} is a chain; give its processors: chain(*one.processors)")
    if isinstance(value, type | FunctionType) and value.__module__.startswith("jaxgen.decoding"):
        raise ConfigError(f"{path}={value.__name__} is no processor, but makes one; call it")
    needs = getattr(value, "needs", None)
    if needs is not None and not hasattr(value, "requires"):
        kind = getattr(value, "__name__", type(value).__name__)
        raise ConfigError(f"{path}: {kind}.needs={needs!r} is now {kind}.requires; rename it")


def sampler(path: str, value: Any, call: arguments.Call) -> None:
    """Raise ConfigError for a processor where a chain of them is wanted."""
    if type(value).__module__.startswith("jaxgen.decoding") and not isinstance(value, Chain):
        name = type(value).__name__
        raise ConfigError(f"{path}={name}(...) is a processor; make it a chain: chain({path})")
    one_processor(path, None if isinstance(value, Chain) else value, call)


@arguments.checked(processors=one_processor)
def chain(*processors: Callable[..., Any]) -> Chain:
    """Return a sampler that applies `processors` in the order written, then draws.

    Args:
        processors: `jaxgen.top_k(5)` and the like, or any function of logits [B, V]; see
            `jaxgen/examples/logits_processor.py` for one that reads earlier tokens. Raises
            ConfigError for what is no processor.

    Returns:
        Chain: (logits [B, V], keys [B]) -> tokens [B].

    >>> sample = jaxgen.chain(jaxgen.temperature(0.7), jaxgen.top_k(1))
    >>> sample(jnp.array([[1.0, 3.0, 2.0]]), jax.random.split(jax.random.key(0), 1))
    Array([1], dtype=int32)
    """
    return Chain(tuple(processors))


def greedy() -> Chain:
    """Return the sampler that takes the token of the largest logit, the first of equals.

    >>> jaxgen.greedy()(jnp.array([[1.0, 3.0, 2.0]]), jax.random.split(jax.random.key(0), 1))
    Array([1], dtype=int32)
    """
    return chain(temperature(0.0))


def check_chain(sample: Any, length: int, *, beams: int = 1) -> None:
    """Raise ConfigError for processors that contradict each other, `length` or the beams."""
    processors = getattr(sample, "processors", ())
    for processor in processors:
        if hasattr(processor, "validate"):
            processor.validate(length, beams)
    number = sum(isinstance(one, Automaton) for one in processors)
    if number > 1:
        raise ConfigError(
            f"{number} automata in one chain exclude each other: where they disagree, no token is "
            f"left; write them as one expression"
        )

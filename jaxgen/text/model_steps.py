"""A Transformer as the steps that decoding takes: one token or many, hidden states, or DoLa."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.config import ModelConfig
from jaxgen.decoding.combined_steps import layer_contrast
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.loop import Step
from jaxgen.errors import ConfigError
from jaxgen.models import api, serving
from jaxgen.ops.cache import by_row
from jaxgen.pytree import register_dataclass

WIDE = 40  # layers; a deeper model contrasts with 20 of them


@register_dataclass
@dataclass(frozen=True)
class _Model:
    """A model whose ids from `known` on are banned, for they spell no text; None: it has none."""

    params: api.Params
    config: ModelConfig = field(metadata={"static": True})
    known: int | None = field(default=None, metadata={"static": True})

    def _ban(self, logits: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
        size = logits.shape[-1]
        known = size if self.known is None else self.known
        return logits if known >= size else jnp.where(jnp.arange(size) < known, logits, -jnp.inf)


@register_dataclass
@dataclass(frozen=True)
class StepWithHidden(_Model):
    """The step that gives its last hidden states, too, for contrastive search."""

    def __call__(self, tokens: Int[Array, "R"], cache: Any) -> tuple[Array, Array, Any]:
        """Return (logits [R, V], hidden [R, D], cache) after one more token of each row."""
        out = api.apply(self.params, self.config, by_row(cache, tokens), cache=cache)
        assert out.logits is not None
        return self._ban(_each(out.logits, tokens)), _each(out.hidden, tokens), out.cache


@register_dataclass
@dataclass(frozen=True)
class ModelStep(_Model):
    """A model as a decoding step: (tokens [R], cache) -> (logits [R, V], cache)."""

    def __call__(self, tokens: Int[Array, "R"], cache: Any) -> tuple[Float[Array, "R V"], Any]:
        """Return the logits after one more token of each row, or of each of its branches."""
        out = api.apply(self.params, self.config, by_row(cache, tokens), cache=cache)
        assert out.logits is not None
        return self._ban(_each(out.logits, tokens)), out.cache


@register_dataclass
@dataclass(frozen=True)
class MultiTokenStep(_Model):
    """The model as a reader of several tokens at once, for speculation."""

    def __call__(self, tokens: Int[Array, "B T"], cache: Any) -> tuple[Array, Any]:
        """Return (logits [B, T, V], cache) after all of the tokens."""
        out = api.apply(self.params, self.config, tokens, cache=cache)
        assert out.logits is not None
        return self._ban(out.logits), out.cache


@register_dataclass
@dataclass(frozen=True)
class _EarlyLogits(_Model):
    layers: tuple[int, ...] = field(default=(), metadata={"static": True})

    def __call__(self, tokens: Int[Array, "R"], cache: Any) -> tuple[Array, Array, Any]:
        rows, layers = by_row(cache, tokens), self.layers
        out, early = api.early_logits(self.params, self.config, rows, layers, cache=cache)
        assert out.logits is not None
        early = self._ban(early.reshape(len(layers), tokens.shape[0], -1))
        return self._ban(_each(out.logits, tokens)), early, out.cache


@arguments.checked(params=api.fits, known=at_least(1))
def model_step(params: api.Params, config: ModelConfig, known: int | None = None) -> ModelStep:
    """Return the model as the step that `decode` takes.

    Args:
        params: of the model; the step holds them as decoding reads them, layer by layer.
        config: of the model; static under jit.
        known: ids that a tokenizer spells; those from it on are banned. None bans none.

    Returns:
        A pytree that is called with (tokens [B], cache) and returns (logits [B, V], cache); see
        `prefill` for the cache and the first tokens.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> params = jaxgen.init(config, jax.random.key(0))
    >>> step = jaxgen.model_step(params, config)
    >>> prompt, lengths = jnp.array([[1, 2]]), jnp.array([2])
    >>> first, cache = jaxgen.prefill(params, config, prompt, lengths, 6)
    >>> key = jax.random.key(1)
    >>> tokens, cache = jaxgen.decode(step, cache, first, key, jaxgen.greedy(), 4)
    >>> tokens.shape
    (1, 4)
    """
    return ModelStep(serving.unroll(params, config), config, known)


def dola_step(
    params: api.Params, config: ModelConfig, layers: tuple[int, ...], known: int | None = None
) -> Step:
    """Return DoLa's step, whose early layers are `layers` (see `dola_layers`)."""
    return layer_contrast(_EarlyLogits(serving.unroll(params, config), config, known, layers))


def dola_layers(config: ModelConfig, which: Literal["low", "high"]) -> tuple[int, ...]:
    """Return the layers that transformers contrasts with; ConfigError for an encoder-decoder."""
    if config.topology != "decoder":
        raise ConfigError(f"dola={which} needs a decoder, but topology={config.topology}")
    last = config.layers
    if which == "high":
        return tuple(range(last // 2 if last <= WIDE else last - 20, last, 2))
    # Where the output table is the embedding's, the embedding only says the token itself.
    first = 0 if config.output == "untied" or last < 2 else 2 if last > 2 else 1
    layers = range(first, last // 2 if last <= WIDE else 20, 2)
    return tuple(layers) or (first,)


def steered_step(step: Step, combine: Callable[..., Step], scale: Float[Array, "B"]) -> Step:
    """Return a step steered away from another prompt, over (cache, (other cache, pending token)).

    combine: (step, step of the other prompt, scale) -> step, as `classifier_free_guidance`.

    pending: [B] what the other prompt has to be given first instead of the request's own last
    token; NO_TOKEN gives it that one.
    """

    def other(tokens: Int[Array, "B"], held: Any):
        cache, pending = held
        logits, cache = step(jnp.where(pending == NO_TOKEN, tokens, pending), cache)
        return logits, (cache, jnp.full_like(pending, NO_TOKEN))

    return combine(step, other, scale)


def _each(x: Float[Array, "B T *X"], tokens: Int[Array, "R"]) -> Float[Array, "R *X"]:
    """What a model makes of `by_row`, token by token again."""
    return x.reshape(tokens.shape[0], *x.shape[2:])

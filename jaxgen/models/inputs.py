"""What a model's arguments may hold besides ids, where their numbers are known (`arguments`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxgen import arrays
from jaxgen.arguments import Call, between
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError


def readable(path: str, positions: Any, call: Call) -> None:
    """Raise ConfigError for positions that a model has no row of, where they are known."""
    config = call.given["config"]
    learned = config.positions == "learned" and call.given.get("cache") is None
    last = config.context - 1 if learned else np.iinfo(np.int32).max
    between(0, last, real="segments")(path, positions, call)


def of_table(path: str, types: Any, call: Call) -> None:
    """Raise ConfigError for token types that the model's table lacks."""
    count = call.given["config"].token_types
    if count:  # a model without a table refuses them all, in a line of its own
        between(0, count - 1)(path, types, call)


def first_in_segments(path: str, prefix: Any, call: Call) -> None:
    """Raise ConfigError unless 1s come first in every segment, where that is known."""
    if call.given["config"].prompt != "both":  # which is refused in a line of its own
        return
    between(0, 1)(path, prefix, call)
    marks, segments = arrays.concrete(prefix), call.given.get("segments")
    numbers = None if segments is None else arrays.concrete(segments)
    if marks is None:
        return
    late = (marks[:, 1:] == 1) & (marks[:, :-1] == 0)
    if segments is not None:
        if numbers is None or numbers.shape != marks.shape:
            return
        late &= np.diff(numbers, axis=1) == 0
    if late.any():
        row, place = map(int, np.argwhere(late)[0])
        raise ConfigError(
            f"{path}[{row}, {place + 1}]=1 comes after a 0: tokens in between would see what they "
            f"are to predict; let the 1s of a segment be its first tokens"
        )


def check_embeds(config: ModelConfig, tokens: Any, inputs_embeds: Any) -> Any:
    """Return the tokens, or zeros of the embeddings' shape; ConfigError unless one is given."""
    if (tokens is None) == (inputs_embeds is None):
        raise ConfigError("give tokens [B, T], or inputs_embeds [B, T, D] in their place")
    if inputs_embeds is None:
        return tokens
    shape = inputs_embeds.shape
    if shape[-1] != config.d_model:
        raise ConfigError(f"inputs_embeds are {list(shape)}, but d_model={config.d_model}")
    return np.zeros(shape[:2], np.int32)


def check_parts(config: ModelConfig, types: Any, cache: Any, memory: Any) -> None:
    """Raise ConfigError for an input that a model of this config has no use for."""
    if memory is not None and config.topology != "encoder_decoder":
        raise ConfigError(
            f"memory= was given, but topology={config.topology} has no cross-attention"
        )
    if cache is not None and config.topology == "encoder":
        raise ConfigError("cache= was given, but topology=encoder sees both sides and has none")
    if types is not None and not config.token_types:
        raise ConfigError("types= was given, but token_types=0: the model has no table of them")

"""What a folder's usage makes of a search or a draw; what the caller says wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.decoding import shape
from jaxgen.decoding.bias import bad_words
from jaxgen.decoding.chain import Chain, chain
from jaxgen.decoding.force import (
    force_first,
    force_last,
    min_length,
    min_new_tokens,
    suppress,
    suppress_first,
)
from jaxgen.decoding.repeat import (
    no_repeat_ngram,
    no_repeat_source,
    repetition_penalty,
    source_penalty,
)
from jaxgen.decoding.search import Search, beams
from jaxgen.pretrained.generation_config import GenerationConfig

BEAMS = 5


def search(
    usage: GenerationConfig, *, count: int | None = None, penalty: float | None = None
) -> Search:
    """Return the search that is asked for: `count` beams (5 where nobody says) and their rules."""
    number = count or usage.beams or BEAMS
    power = penalty if penalty is not None else usage.length_penalty
    return beams(
        number, length_penalty=1.0 if power is None else power, until=usage.until or "likely"
    )


def rules(
    usage: GenerationConfig,
    *,
    stop: Sequence[int],
    length: Any,
    prompt: Any,
    source: Any = None,
    lengths: Any = None,
) -> tuple[Any, ...]:
    """Return the processors that forbid, force and penalise, in transformers' order.

    stop: ids that end a text. length: new tokens at most, int or [B]. prompt: tokens of it, int or
    [B]. source, lengths: what an encoder reads, [B, S] and [B].
    """
    found, begins = [], np.asarray(prompt) == 1
    if usage.source_penalty and source is not None:
        found.append(source_penalty(usage.source_penalty, source, lengths))
    if usage.repetition_penalty:
        found.append(repetition_penalty(usage.repetition_penalty))
    if usage.no_repeat_ngram:
        found.append(no_repeat_ngram(usage.no_repeat_ngram))
    if usage.no_repeat_source and source is not None:
        found.append(no_repeat_source(usage.no_repeat_source, source, lengths))
    if usage.never_words:
        found.append(bad_words([list(row) for row in usage.never_words], keep=stop))
    if usage.min_length and stop:
        found.append(min_length(usage.min_length, list(stop)))
    if usage.min_new_tokens and stop:
        found.append(min_new_tokens(usage.min_new_tokens, list(stop)))
    if usage.first:  # that of texts that only begin; the place `length` never comes
        found.append(force_first(list(usage.first), place=_where(begins, 0, length)))
    if usage.last:
        found.append(force_last(list(usage.last), length=length))
    if usage.never:
        found.append(suppress(list(usage.never)))
    if usage.never_first:
        place = _where(begins, 1, 0) if usage.first else 0
        found.append(suppress_first(list(usage.never_first), place=place))
    return tuple(found)


def draw(
    usage: GenerationConfig,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Any, ...]:
    """Return the processors of a draw, in transformers' order; temperature 0 the likeliest.

    temperature: None takes the folder's: 1 where it draws without one, 0 where it does not draw,
    and 0.8 where it says nothing. What the caller gives replaces the folder's.
    """
    if temperature is None:
        open_ = 0.8 if usage.temperature is None and usage.top_p is None else 1.0
        fallback = {"draw": 1.0, "best": 0.0, None: open_}[usage.pick]
        temperature = usage.temperature if usage.pick != "best" and usage.temperature else fallback
    found: list[Any] = [shape.temperature(temperature)]
    if temperature == 0:
        return tuple(found)
    if count := top_k or usage.top_k:
        found.append(shape.top_k(count))
    if mass := top_p or usage.top_p:
        found.append(shape.top_p(mass))
    if usage.min_p:
        found.append(shape.min_p(usage.min_p))
    if usage.typical:
        found.append(shape.typical(usage.typical))
    return tuple(found)


def _where(begins: Any, yes: Any, no: Any) -> Any:
    places = np.where(begins, yes, no)
    return int(places) if places.ndim == 0 else places.astype(np.int32)


def sampler(parts: Sequence[Any]) -> Chain:
    """Return the chain of the parts."""
    return chain(*parts)


def stops(usage: GenerationConfig, eos: int | None) -> tuple[int, ...]:
    """Return the ids that end a text: those of the folder, or the tokenizer's."""
    return usage.stop or (() if eos is None else (eos,))

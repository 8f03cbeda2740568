"""What a folder's usage makes of a search or a draw; what the caller says wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from jaxgen.decoding.shape import min_p, temperature, top_k, top_p, typical
from jaxgen.text.usage import Usage

BEAMS = 5


def search(usage: Usage, *, count: int | None = None, penalty: float | None = None) -> Search:
    """Return the search that is asked for: `count` beams (5 where nobody says) and their rules."""
    number = count or usage.beams or BEAMS
    power = penalty if penalty is not None else usage.length_penalty
    return beams(
        number, length_penalty=1.0 if power is None else power, until=usage.until or "likely"
    )


def rules(
    usage: Usage,
    *,
    stop: Sequence[int],
    length: int,
    prompt: int,
    source: Any = None,
    lengths: Any = None,
) -> tuple[Any, ...]:
    """Return the processors that forbid, force and penalise, in transformers' order.

    stop: ids that end a text. length: new tokens at most. prompt: tokens of it. source, lengths:
    what an encoder reads, [B, S] and [B].
    """
    found: list[Any] = []
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
    if usage.first and prompt == 1:
        found.append(force_first(list(usage.first)))
    if usage.last:
        found.append(force_last(list(usage.last), length=length))
    if usage.never:
        found.append(suppress(list(usage.never)))
    if usage.never_first:
        place = 1 if usage.first and prompt == 1 else 0
        found.append(suppress_first(list(usage.never_first), place=place))
    return tuple(found)


def draw(
    usage: Usage,
    *,
    heat: float | None = None,
    k: int | None = None,
    p: float | None = None,
) -> tuple[Any, ...]:
    """Return the processors of a draw, in transformers' order; heat 0 takes the likeliest.

    heat: None takes the folder's temperature: 1 where it draws without one, 0 where it does not
    draw, and 0.8 where it says nothing. A heat, k or p of the caller's replaces the folder's.
    """
    if heat is None:
        open_ = 0.8 if usage.temperature is None and usage.top_p is None else 1.0
        fallback = {"draw": 1.0, "best": 0.0, None: open_}[usage.pick]
        heat = usage.temperature if usage.pick != "best" and usage.temperature else fallback
    found: list[Any] = [temperature(heat)]
    if heat == 0:
        return tuple(found)
    if count := k or usage.top_k:
        found.append(top_k(count))
    if mass := p or usage.top_p:
        found.append(top_p(mass))
    if usage.min_p:
        found.append(min_p(usage.min_p))
    if usage.typical:
        found.append(typical(usage.typical))
    return tuple(found)


def sampler(parts: Sequence[Any]) -> Chain:
    """Return the chain of the parts."""
    return chain(*parts)


def stops(usage: Usage, eos: int | None) -> tuple[int, ...]:
    """Return the ids that end a text: those of the folder, or the tokenizer's."""
    return usage.stop or (() if eos is None else (eos,))

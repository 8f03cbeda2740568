"""What a folder says of generation, as defaults of the settings that a request leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text.generation import Generation

# Fields of the same name and meaning on both sides.
DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical")
SAME = ("repetition_penalty", "no_repeat_ngram", "min_length", "min_new_tokens")
BESIDE_A_SOURCE = ("source_penalty", "no_repeat_source")


def fill(wanted: Generation, usage: GenerationConfig) -> tuple[Generation, str]:
    """Return (settings, what was taken from the folder in words, "" for nothing).

    What the request says wins, and what contradicts it is left out.
    """
    told, fresh = [], Generation()
    for name, value in _offered(wanted, usage):
        if getattr(wanted, name) != getattr(fresh, name):
            continue
        try:
            wanted = replace(wanted, **{name: value})
        except ConfigError:  # the request asks for another way to decode
            continue
        told.append(f"{name}={value}")
    return wanted, ", ".join(told)


def _offered(wanted: Generation, usage: GenerationConfig) -> Iterator[tuple[str, Any]]:
    """Yield (field, value), those first that others depend on."""
    if usage.length is not None:
        yield "max_new_tokens", usage.length
    if usage.beams and usage.beams > 1 and usage.pick != "draw":
        yield "beams", usage.beams
        yield "length_penalty", usage.length_penalty
        yield "until", usage.until
    elif usage.pick == "best" and wanted.strategy == "draw":
        yield "temperature", 0.0
    for name in SAME if usage.pick == "best" else (*DRAWING, *SAME):
        if (value := getattr(usage, name)) is not None:
            yield name, value
    for name in BESIDE_A_SOURCE:
        if (value := getattr(usage, name)) is not None:
            yield name, value
    if usage.never:
        yield "suppress_ids", usage.never
    if len(usage.first) == 1:
        yield "force_first", usage.first[0]
    if len(usage.last) == 1:
        yield "force_last", usage.last[0]

"""What a strategy can't do with a chain, said before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxgen.decoding.automaton import FAR, Automaton
from jaxgen.decoding.force import ForceAt, MinNewTokens
from jaxgen.decoding.truncation import Temperature
from jaxgen.errors import ConfigError


def check(sample: Any, length: int, *, beams: int = 1) -> None:
    """Raise ConfigError for processors that contradict the `length` or the number of beams.

    Settings on a device, or traced, are trusted: looking at them would wait, or can't be done.
    """
    for processor in getattr(sample, "processors", ()):
        for name, value, wrong, why in _contradictions(processor, length, beams):
            known = isinstance(value, (int, float, np.ndarray, np.generic))
            if known and np.any(wrong(np.asarray(value))):
                raise ConfigError(why.format(f"{name}={value}"))
    automata = [one for one in getattr(sample, "processors", ()) if isinstance(one, Automaton)]
    if len(automata) > 1:
        raise ConfigError(
            f"{len(automata)} automata in one chain exclude each other: where they disagree, no "
            f"token is left; write them as one expression"
        )


def _contradictions(processor: Any, length: int, beams: int) -> Iterator[tuple]:
    if isinstance(processor, Temperature) and beams > 1:
        yield (
            *("temperature", processor.value, lambda x: x == 0),
            f"{{}} with beams={beams}: every beam would have one way to go on; drop one",
        )
    if isinstance(processor, Automaton):
        yield (
            *("within", processor.within, lambda x: (x > length) & (x < FAR)),
            f"{{}} of an automaton exceeds length={length}: the text would be cut before it ends",
        )
    if isinstance(processor, MinNewTokens):
        yield (
            *("min_new_tokens", processor.count, lambda x: x > length),
            f"{{}} exceeds length={length}, so that no text could end; lower one",
        )
    if isinstance(processor, ForceAt):
        yield (
            *("place", processor.place, lambda x: x >= length),
            f"a token forced at {{}} never comes: length={length} ends before; lower one",
        )

"""How beams are kept: the settings of a beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jaxgen import arguments
from jaxgen.arguments import Range, at_least
from jaxgen.decoding.record import record
from jaxgen.decoding.setting import Number
from jaxgen.decoding.truncation import static
from jaxgen.errors import ConfigError

Pick = Literal["best", "draw"]
Until = Literal["full", "likely", "certain"]
RULES = {"full": 0, "likely": 1, "certain": 2}


@arguments.checked
@record
@dataclass(frozen=True)
class Search:
    """How beams are kept; what is not static is data, a number or an array [B]."""

    length_penalty: Number
    until: Number  # of RULES
    diversity: Number
    beams: int = static(1)
    groups: int = static(1)
    pick: Pick = static("best")
    made_by: ClassVar[str] = "beams"


@arguments.checked(
    count=at_least(1), groups=at_least(1), diversity=at_least(0), length_penalty=Range()
)
def beams(
    count: int,
    *,
    length_penalty: Number = 1.0,
    until: Until | Sequence[Until] = "likely",
    groups: int = 1,
    diversity: Number = 0.0,
    pick: Pick = "best",
) -> Search:
    """Return a Search of `count` beams.

    length_penalty: scores are divided by (new tokens)^penalty; above 0 favours long texts.
    until: when a request ends. "full" as soon as `count` texts have ended; "likely" (the default)
      when the best beam, were it to end now, could not enter them; "certain" when it could not at
      any length. These are early_stopping=True, False and "never" of transformers. One, or one
      per request.
    groups: beams search in so many groups, each of which avoids the tokens that the groups before
      it have chosen at the same place: `diversity` is subtracted for each such choice.
    pick: "best" keeps the best continuations; "draw" draws them without replacement.
    Raises ConfigError for a value out of range, or two that contradict each other.
    """
    if count % groups:
        raise ConfigError(f"beams={count} is not a multiple of groups={groups}")
    names = [until] if isinstance(until, str) else list(until)
    if groups == 1 and np.ndim(diversity) == 0 and diversity != 0:
        raise ConfigError(f"diversity={diversity} has no effect with groups=1; give groups")
    if groups > 1 and pick == "draw":
        raise ConfigError(f"groups={groups} and pick='draw' exclude each other; drop one")
    codes = np.asarray([RULES[name] for name in names], np.int32)
    code = codes[0] if isinstance(until, str) else codes
    return Search(length_penalty, code, diversity, count, groups, pick)


def check(search: Search, returned: int, key: Any, words: Any) -> None:
    """Raise ConfigError if a search can't return so many texts, or contradicts its key or words."""
    if not 1 <= returned <= search.beams:
        raise ConfigError(f"returned={returned} must be from 1 to beams={search.beams}")
    if search.pick == "draw" and key is None:
        raise ConfigError("pick='draw' needs key=; give jax.random.key(seed)")
    if words is not None and search.groups > 1:
        raise ConfigError(f"groups={search.groups} and words= exclude each other; drop one")
    if words is not None and search.pick == "draw":
        raise ConfigError("pick='draw' and words= exclude each other; drop one")

"""Settings of a beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jaxgen import arguments
from jaxgen.arguments import Range, at_least
from jaxgen.decoding.per_request import Number
from jaxgen.decoding.processors.base import static
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

EarlyStopping = bool | Literal["never"]
STOP_RULES: dict[EarlyStopping, int] = {True: 0, False: 1, "never": 2}


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class Search:
    """Settings of a beam search; those that are not static are numbers or arrays [B]."""

    length_penalty: Number
    early_stopping: Number  # one of STOP_RULES
    diversity: Number
    beams: int = static(1)
    groups: int = static(1)
    do_sample: bool = static(False)
    made_by: ClassVar[str] = "beams"


@arguments.checked(
    count=at_least(1), groups=at_least(1), diversity=at_least(0), length_penalty=Range()
)
def beams(
    count: int,
    *,
    length_penalty: Number = 1.0,
    early_stopping: EarlyStopping | Sequence[EarlyStopping] = False,
    groups: int = 1,
    diversity: Number = 0.0,
    do_sample: bool = False,
) -> Search:
    """Return the settings of a beam search.

    Args:
        count: number of beams, at least 1.
        length_penalty: scores are divided by (new tokens)^penalty; above 0 favours long texts. A
            number or [B].
        early_stopping: when a request ends, as in transformers; one value, or one per request.
            True: as soon as `count` texts have ended. False: when the best open beam, ended now,
            would not be among them. "never": when it would not at any length.
        groups: number of groups of diverse beam search (Vijayakumar et al. 2016).
        diversity: diversity penalty, a number or [B], at least 0: subtracted from a token's score
            for each beam of an earlier group that chose it at the same position.
        do_sample: sample continuations without replacement instead of taking the best.

    Returns:
        Search, the argument `search=` of `beam_search` and `generate_beams`.

    Raises:
        ConfigError: for a value out of range, or two that contradict each other.

    >>> jaxgen.beams(4, groups=2, diversity=0.5).groups
    2
    """
    if count % groups:
        raise ConfigError(f"beams={count} is not a multiple of groups={groups}")
    one = isinstance(early_stopping, (bool, str))
    rules: list[Any] = [early_stopping] if one else list(early_stopping)  # pyright: ignore[reportArgumentType]
    if groups == 1 and np.ndim(diversity) == 0 and diversity != 0:
        raise ConfigError(f"diversity={diversity} has no effect with groups=1; give groups")
    if groups > 1 and do_sample:
        raise ConfigError(f"groups={groups} and do_sample=True exclude each other; drop one")
    codes = np.asarray([STOP_RULES[rule] for rule in rules], np.int32)
    code = codes[0] if one else codes
    return Search(length_penalty, code, diversity, count, groups, do_sample)


def check(search: Search, num_return: int, key: Any, words: Any) -> None:
    """Raise ConfigError for a num_return out of range, a missing key, or unsupported words."""
    if not 1 <= num_return <= search.beams:
        raise ConfigError(f"num_return={num_return} must be from 1 to beams={search.beams}")
    if search.do_sample and key is None:
        raise ConfigError("do_sample=True needs key=; give jax.random.key(seed)")
    if words is not None and search.groups > 1:
        raise ConfigError(f"groups={search.groups} and words= exclude each other; drop one")
    if words is not None and search.do_sample:
        raise ConfigError("do_sample=True and words= exclude each other; drop one")

"""Words of the command line that several verbs share, and numbers read strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen.errors import ConfigError

Overrides = Annotated[
    str,
    Parameter(
        help="SECTION.KEY=VALUE: a key of the config and what to set it to", name="KEY=VALUE"
    ),
]
Step = Annotated[
    str | None,
    Parameter(name="--step", help="checkpoint of a run: its number, best or last; by default last"),
]
Adapters = Annotated[
    tuple[str, ...],
    Parameter(
        name="--adapter",
        help="PATH[=SCALE] of an adapter around the model: PEFT's folder, or a run; repeatable",
        consume_multiple=False,
    ),
]
Out = Annotated[str | None, Parameter(name="--out", help="run folder to write", negative=())]


def _whole(kind: Any, tokens: Sequence[Any]) -> int:
    # cyclopts would round 1.5 to 2 without a word.
    text = tokens[0].value.strip()
    if not re.fullmatch(r"[-+]?[0-9]{1,30}", text):
        raise ValueError(f"it wants a whole number, not {text!r}")
    return int(text)


def _real(kind: Any, tokens: Sequence[Any]) -> float:
    try:
        value = float(tokens[0].value)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"it wants an ordinary number, not {tokens[0].value!r}")
    return value


WHOLE = Parameter(converter=_whole, allow_leading_hyphen=True)
REAL = Parameter(converter=_real, allow_leading_hyphen=True)


def at_least(low: int) -> Parameter:
    """Return how a whole number from `low` on is read."""

    def validate(kind: Any, value: Any) -> None:
        if value is not None and value < low:
            raise ValueError(f"must be at least {low}")

    return Parameter(converter=_whole, validator=validate, allow_leading_hyphen=True)


def check_overrides(words: Sequence[str], text: bool = False) -> None:
    """Raise ConfigError for a word that is no SECTION.KEY=VALUE; text: it can only mean text."""
    for word in words:
        if "=" not in word:
            remedy = "after the config come overrides, SECTION.KEY=VALUE as in train.steps=100"
            if text or Path(word).exists():
                remedy = f"for other text write data.files={word}"
            raise ConfigError(f"unexpected word {word!r}: {remedy}")

"""The settings of generation as options of the command line: one option a field, grouped."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Group, Parameter

from jaxgen.cli.arguments import REAL, WHOLE
from jaxgen.errors import ConfigError
from jaxgen.text.request import GROUPS, Generation

_NUMBERS = {int: WHOLE, float: REAL}
_NAMES = re.compile(rf"\b({'|'.join(field.name for field in dataclasses.fields(Generation))})\b")


def _options() -> Any:
    """Return a dataclass of optional fields, as cyclopts reads its options from."""
    panels = {name: Group(name, sort_key=1 + order) for order, name in enumerate(GROUPS)}
    hints = typing.get_type_hints(Generation)
    fields: list[Any] = []
    for field in dataclasses.fields(Generation):
        hint = hints[field.name]
        several = typing.get_origin(hint) is tuple
        number = _NUMBERS.get(typing.get_args(hint)[0] if typing.get_args(hint) else hint)
        repeated: dict[str, Any] = {"consume_multiple": False} if several else {}
        about = Parameter(
            help=field.metadata["help"],
            group=panels[field.metadata["group"]],
            allow_leading_hyphen=True,
            show_default=field.default not in (None, ()),
            **repeated,
        )
        extra = () if number is None or several else (number,)
        fields.append((field.name, Annotated[(hint, *extra, about)], field.default))
    options = dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)
    options.__module__ = __name__  # else cyclopts takes it for a type of the standard library
    return options


Options = _options()
Settings = Annotated[Options | None, Parameter(name="*")]


def settings_of(options: Any) -> Generation:
    """Return the settings that were asked for; ConfigError, with --names, if they can't be."""
    with named():
        return Generation(**({} if options is None else vars(options)))


@contextmanager
def named() -> Iterator[None]:
    """Let a ConfigError speak of --max-new-tokens where it says max_new_tokens=, and the like."""
    try:
        yield
    except ConfigError as error:
        text = _NAMES.sub(lambda match: _spelled(match, str(error)), str(error))
        raise type(error)(text) from error


def _spelled(match: re.Match[str], text: str) -> str:
    name, (begin, end) = match.group(1), match.span()
    option = f"--{name.replace('_', '-')}"
    before, after = text[:begin], text[end : end + 1]
    named = after == "=" or "_" in name or before.endswith(("without ", "give "))
    return option if named and not before.endswith(("-", ".")) else name

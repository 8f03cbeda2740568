"""Mistakes on the command line, each in one line with the likely remedy."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from jaxgen.errors import ConfigError, nearest


def explain(error: CycloptsError, verbs: Sequence[str]) -> ConfigError:
    """Return what cyclopts found as a ConfigError of one line."""
    error.verbose = False
    verb = " ".join(error.command_chain or ())
    more = f"; see `jaxgen {verb} --help`" if verb else "; see `jaxgen --help`"
    if isinstance(error, UnknownCommandError):
        return ConfigError(_unknown_verb(error, verbs) + more)
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        key, equals, value = word.lstrip("-").partition("=")
        if "." in key:
            return ConfigError(
                f"unknown option {word!r}: overrides have no dashes; "
                f"write {key}={value if equals else 'VALUE'}"
            )
        names = [
            n for argument in error.argument_collection for n in argument.names if n[:1] == "-"
        ]
        option = word.partition("=")[0]
        return ConfigError(f"unknown option {option!r}{nearest(option, names)}{more}")
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(map(repr, error.unused_tokens or ()))
        return ConfigError(f"unexpected {words}{more}")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        what = "needs a value" if name.startswith("-") else "is missing"
        return ConfigError(f"{name} {what}{more}")
    if isinstance(error, ValidationError) and error.argument is not None:
        name, value = error.argument.name, error.argument.tokens[0].value
        return ConfigError(f"{name}={value} {error.exception_message}{more}")
    text = (
        " ".join(str(error).split())
        .removesuffix(".")
        .replace(". ", "; ")
        .replace("Did you", "did you")
        .replace("Choose", "choose")
    )
    return ConfigError(f"{text[:1].lower()}{text[1:]}{more}")


def _unknown_verb(error: UnknownCommandError, verbs: Sequence[str]) -> str:
    word = next(iter(error.unused_tokens or error.root_input_tokens or ("",)))
    if word.endswith((".yaml", ".yml")):
        return f"unknown verb {word!r} (did you mean `jaxgen train {word}`?)"
    kind = "option" if word.startswith("-") else "verb"
    known = [name for name in verbs if name.startswith("-") == (kind == "option")]
    hint = nearest(word, known) or f"; there are {', '.join(known)}"
    return f"unknown {kind} {word!r}{hint}"

"""Jinja templates of strangers, rendered in a sandbox.

They run in jinja2's immutable sandbox with the helpers of transformers
(`utils/chat_template_utils.py`), and within bounds: numbers, repeated texts, steps of `range` and
the length of the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jaxgen.errors import CheckpointError, ConfigError, MissingPackageError

LONGEST = 10_000_000  # characters of a rendered chat, and of a repeated text
STEPS = 100_000  # of all ranges of a template together
BIGGEST = 2**64  # of a power
OPEN, CLOSE = "\uf8fe", "\uf8ff"  # around what {% generation %} marks, where that is asked for
MINIMUM = (3, 1, 6)  # of jinja2: sandboxes before it have known holes


def render(source: str, where: str, given: Mapping[str, Any], *, marks: bool = False) -> str:
    """Return what a template makes of the values it is given; where: its name in messages.

    marks: put OPEN and CLOSE around what stands in {% generation %}. Raises ConfigError where it
    refuses the values; CheckpointError where it is wrong, or goes out of bounds.
    """
    jinja2 = _library()
    compiled = _compiled(source, where)
    parts, size = [], 0
    try:
        for part in compiled(marks).generate(**given):
            size += len(part)
            if size > LONGEST:
                raise CheckpointError(f"{where} makes more than {LONGEST} characters")
            parts.append(part)
    except CheckpointError:
        raise
    except Refused as error:
        raise ConfigError(f"the chat template refuses: {_line(error)}") from error
    except jinja2.exceptions.SecurityError as error:
        raise CheckpointError(f"{where} does what it may not: {_line(error)}") from error
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"{where} fails: {type(error).__name__}: {_line(error)}") from error
    return "".join(parts)


class Refused(Exception):  # noqa: N818  a template says it of messages
    """What a template's raise_exception raises."""


@lru_cache(maxsize=8)
def _compiled(source: str, where: str) -> Callable[[bool], Any]:
    jinja2 = _library()
    try:
        code = _environment().compile(source)
    except jinja2.exceptions.TemplateError as error:
        raise CheckpointError(
            f"{where} is no template: line {getattr(error, 'lineno', '?')}: {_line(error)}"
        ) from error
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None

    def template(marks: bool) -> Any:
        environment = _environment(marks)  # each rendering counts its own steps
        return jinja2.Template.from_code(environment, code, environment.make_globals(None))

    return template


def _environment(marks: bool = False) -> Any:
    jinja2 = _library()
    from jinja2 import ext, sandbox, utils

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["**", "*"])

        def call_binop(self, context, operator, left, right):
            bounded = {"**": _power, "*": _times}[operator]
            return bounded(left, right, super().call_binop, context)

    class Generation(ext.Extension):
        """{% generation %}, with which some templates mark what the model has said."""

        tags = {"generation"}  # noqa: RUF012  jinja2 wants a set

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_said")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _said(self, caller):
            return f"{OPEN}{caller()}{CLOSE}" if marks else caller()

    class Names(utils.Namespace):
        def __init__(*args, **kwargs):
            self, given = args[0], dict(*args[1:], **kwargs)
            for name in given:
                _check_name(name)
            utils.Namespace.__init__(self, given)

        def __setitem__(self, name, value):
            _check_name(name)
            utils.Namespace.__setitem__(self, name, value)

    def _check_name(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may hold no {name!r}")

    class Dict:
        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

        def fromkeys(self, *args, **kwargs):
            return dict.fromkeys(*args, **kwargs)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "range": _counted(jinja2),
        "dict": Dict(),
        "namespace": Names,
    }
    return environment


def _refuse(message: str) -> None:
    raise Refused(str(message))


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # jinja2's own escapes what HTML would misread.
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _counted(jinja2: Any) -> Callable[..., range]:
    spent = 0

    def bounded(*args: int) -> range:
        nonlocal spent
        numbers = range(*args)
        spent += len(numbers)
        if spent > STEPS:
            raise jinja2.exceptions.SecurityError(f"its ranges take more than {STEPS} steps")
        return numbers

    return bounded


def _power(left: Any, right: Any, go_on: Callable[..., Any], context: Any) -> Any:
    jinja2 = _library()
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and left.bit_length() * right > BIGGEST.bit_length():
        raise jinja2.exceptions.SecurityError(f"the power {left}**{right} is too large")
    return go_on(context, "**", left, right)


def _times(left: Any, right: Any, go_on: Callable[..., Any], context: Any) -> Any:
    jinja2 = _library()
    for text, number in ((left, right), (right, left)):
        if hasattr(text, "__len__") and isinstance(number, int) and len(text) * number > LONGEST:
            raise jinja2.exceptions.SecurityError(f"a repetition of {number} is too long")
    return go_on(context, "*", left, right)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _library() -> Any:
    try:
        import jinja2
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise MissingPackageError(
            "a chat template needs the `jinja2` package: pip install 'jaxgen[chat]'"
        ) from error
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise MissingPackageError(
            f"jinja2 {jinja2.__version__} has holes in its sandbox; pip install 'jinja2>={wanted}'"
        )
    return jinja2

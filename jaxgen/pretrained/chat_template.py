"""A folder's chat template: messages to the text that its model was taught, rendered in a sandbox.

Templates are programs of strangers. They run in jinja2's immutable sandbox with the helpers of
transformers (`utils/chat_template_utils.py`), and within bounds: numbers, repeated texts, steps of
`range` and the length of the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import files, settings_yaml
from jaxgen.errors import CheckpointError, ConfigError

FILE = "chat.yaml"  # in our own folders
TEMPLATE, TOKENIZER, OLD = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
MAX_BYTES = 1 << 20
LONGEST = 10_000_000  # characters of a rendered chat, and of a repeated text
STEPS = 100_000  # of all ranges of a template together
BIGGEST = 2**64  # of a power
MINIMUM = (3, 1, 6)  # of jinja2: sandboxes before it have known holes

BEGIN, END = "\ue000", "\ue001"  # around what only looks like a mark in somebody's words

Message = Any  # a mapping with role and content; `render_chat` looks


class ChatTemplate(NamedTuple):
    """The source of a template, and the pieces it calls by name (bos_token, eos_token, ...)."""

    source: str
    names: Mapping[str, str]
    where: str = "the template"


def read_chat_template(folder: Path) -> ChatTemplate:
    """Return the template of a Hugging Face folder, or of one of ours; CheckpointError if none."""
    if (folder / FILE).exists():
        kept = settings_yaml.read(folder / FILE)
        source, names = kept.get("template"), kept.get("names") or {}
        if not isinstance(source, str) or not isinstance(names, dict):
            raise CheckpointError(f"{folder / FILE} is damaged: it holds no template and names")
        return ChatTemplate(source, names, str(folder / FILE))
    about = _json(folder / TOKENIZER)
    found = [
        (folder / TEMPLATE, _text(folder / TEMPLATE)),
        (folder / OLD, _default(_json(folder / OLD).get("chat_template"))),
        (folder / TOKENIZER, _default(about.get("chat_template"))),
    ]
    path, source = next(((p, s) for p, s in found if s), (folder, None))
    if source is None:
        raise CheckpointError(
            f"{folder} has no chat template ({TEMPLATE}, or chat_template in {TOKENIZER}); "
            f"its model was not made for chat: complete texts instead"
        )
    names = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in (_json(folder / "special_tokens_map.json") | about).items()
        if key.endswith("_token")
    }
    return ChatTemplate(source, {k: v for k, v in names.items() if isinstance(v, str)}, str(path))


def has_chat_template(folder: Path) -> bool:
    """Return whether `read_chat_template` finds a template."""
    try:
        read_chat_template(folder)
    except CheckpointError:
        return False
    return True


def write_chat_template(folder: Path, template: ChatTemplate) -> None:
    """Write the template into one of our folders."""
    about = {"template": template.source, "names": dict(template.names)}
    files.write(folder / FILE, settings_yaml.write(about))


def render_chat(
    template: ChatTemplate, messages: Sequence[Message], *, answer: bool = True, **values: Any
) -> str:
    """Return the text of a chat; answer: with the mark after which the model's turn begins.

    values: what else the template knows, such as tools. Raises ConfigError for messages without
    role and content, and where the template refuses them; CheckpointError where the template
    itself is wrong, or goes out of bounds.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(f"message {number} has no role; write role and content")
        if not isinstance(message.get("content"), str):
            raise ConfigError(f"message {number}: content is no text; only texts are read")
    if not messages:
        raise ConfigError("a chat needs at least one message")
    jinja2 = _library()
    compiled = _compiled(template.source, template.where)
    given = {**template.names, **values, "messages": [dict(m) for m in messages]}
    given |= {"add_generation_prompt": answer}
    given = {"tools": None, "documents": None, **given}
    parts, size = [], 0
    try:
        for part in compiled().generate(**given):
            size += len(part)
            if size > LONGEST:
                raise CheckpointError(f"{template.where} makes more than {LONGEST} characters")
            parts.append(part)
    except CheckpointError:
        raise
    except Refused as error:
        raise ConfigError(f"the chat template refuses: {_line(error)}") from error
    except jinja2.exceptions.SecurityError as error:
        raise CheckpointError(f"{template.where} does what it may not: {_line(error)}") from error
    except RecursionError:
        raise CheckpointError(f"{template.where} is nested too deeply") from None
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{template.where} fails: {type(error).__name__}: {_line(error)}"
        ) from error
    return "".join(parts)


def encode_chat(template: ChatTemplate, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a chat up to where the model's turn begins.

    Marks are those that the template writes. A piece like them in a message's content is text, so
    that nobody's words can end their turn (transformers: `sanitize_control_tokens`).
    """
    encode = getattr(tokenizer, "encode_marked", None)
    if encode is None:
        kind = type(tokenizer).__name__.lower()
        raise ConfigError(f"chat needs a tokenizer with marks, and a {kind} one has none")
    marks = sorted(tokenizer.marks(), key=len, reverse=True)  # pyright: ignore
    any_mark = re.compile("|".join(map(re.escape, marks)) or "(?!)")
    guarded = [_guarded(message, any_mark) for message in messages]
    text = render_chat(template, guarded)
    ids: list[int] = []
    for place, part in enumerate(re.split(f"{BEGIN}({any_mark.pattern}){END}", text)):
        part = part.replace(BEGIN, "").replace(END, "")
        if part:
            ids += tokenizer.encode(part) if place % 2 else encode(part)
    return ids


def _guarded(value: Any, marks: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        value = value.replace(BEGIN, "").replace(END, "")
        return marks.sub(lambda found: f"{BEGIN}{found[0]}{END}", value)
    if isinstance(value, dict):
        return {key: _guarded(item, marks) for key, item in value.items()}
    return [_guarded(item, marks) for item in value] if isinstance(value, list) else value


class Refused(Exception):  # noqa: N818  a template says it of messages
    """What a template's raise_exception raises."""


@lru_cache(maxsize=8)
def _compiled(source: str, where: str) -> Callable[[], Any]:
    jinja2 = _library()
    try:
        _environment().from_string(source)
    except jinja2.exceptions.TemplateError as error:
        raise CheckpointError(
            f"{where} is no template: line {getattr(error, 'lineno', '?')}: {_line(error)}"
        ) from error
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply") from None
    # Each rendering counts its own steps.
    return lambda: _environment().from_string(source)


def _environment() -> Any:
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
            return caller()

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

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "range": _counted(jinja2),
        "dict": Dict(),
        "namespace": Names,
    }
    return made


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
        found = range(*args)
        spent += len(found)
        if spent > STEPS:
            raise jinja2.exceptions.SecurityError(f"its ranges take more than {STEPS} steps")
        return found

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
        raise ConfigError(
            "a chat template needs the `jinja2` package: pip install 'jaxgen[chat]'"
        ) from error
    found = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if found < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise ConfigError(
            f"jinja2 {jinja2.__version__} has holes in its sandbox; pip install 'jinja2>={wanted}'"
        )
    return jinja2


def _text(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return files.read_artifact(path, "chat template", MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8") from error


def _default(value: Any) -> str | None:
    """Return a template that stands alone, or the one called default of several."""
    if isinstance(value, list):
        named = {row.get("name"): row.get("template") for row in value if isinstance(row, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(files.read_artifact(path, "tokenizer config", 100 * MAX_BYTES))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}; fetch it again") from error
    return value if isinstance(value, dict) else {}

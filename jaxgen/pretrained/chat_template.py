"""A folder's chat template: messages to the text and the ids that its model was taught."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import files, settings_yaml
from jaxgen.errors import CheckpointError, ConfigError, UserError, nearest
from jaxgen.pretrained import sandbox
from jaxgen.pretrained.gguf_read import is_gguf, read_templates
from jaxgen.pretrained.hub_tokenizer import named_pieces

FILE = "chat.yaml"  # in our own folders
TEMPLATE, TOKENIZER, OLD = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
MAX_BYTES = 1 << 20

FOLDER = "additional_chat_templates"  # of further ones, each as NAME.jinja
REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing, as templates name it
COVERS = range(0xE000, 0xF900)  # private characters, of which some text has none

Message = Any  # a mapping with role and content; `render_chat` looks


class ChatTemplate(NamedTuple):
    """The source of a template, and the pieces it calls by name (bos_token, eos_token, ...).

    others: templates of other names; "tool_use" is taken where tools are given.
    """

    source: str
    names: Mapping[str, str]
    where: str = "the template"
    others: Mapping[str, str] | None = None


def read_chat_template(folder: Path) -> ChatTemplate:
    """Return the template of a Hugging Face folder, a GGUF file, or a folder of ours.

    Raises CheckpointError if there is none.
    """
    if (folder / FILE).exists():
        stored = settings_yaml.read_yaml(folder / FILE)
        source, names, others = (stored.get(key) for key in ("template", "names", "others"))
        names, others = names or {}, others or {}
        if not (isinstance(source, str) and isinstance(names, dict) and isinstance(others, dict)):
            raise CheckpointError(f"{folder / FILE} is damaged: it holds no template and names")
        return ChatTemplate(source, names, str(folder / FILE), others)
    alone = {path.stem: _text(path) for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (whole := _text(folder / TEMPLATE)) is not None:
        alone["default"] = whole
    sources = [(folder / (TEMPLATE if whole else FOLDER), alone)]
    if is_gguf(folder):
        sources = [(folder, dict[str, Any](read_templates(folder)))]
    for path in (folder / OLD, folder / TOKENIZER):
        if path.exists():
            about = files.read_json(path, "tokenizer config", 100 * MAX_BYTES)
            sources.append((path, _named(about)))
    path, named = next(((path, named) for path, named in sources if named), (folder, {}))
    if not named:
        raise CheckpointError(
            f"{folder} has no chat template ({TEMPLATE}, or chat_template in {TOKENIZER}); "
            f"its model was not made for chat: complete texts instead"
        )
    if odd := [name for name in named if not re.fullmatch(r"[\w-]{1,80}", name)]:
        raise CheckpointError(f"{path}: {odd[0]!r:.100} is no name of a chat template")
    source = named.pop("default", "") or ""
    others = {name: text for name, text in named.items() if text}
    return ChatTemplate(source, named_pieces(folder), str(path), others)


def has_chat_template(folder: Path) -> bool:
    """Return whether `read_chat_template` finds a template."""
    try:
        read_chat_template(folder)
    except CheckpointError:
        return False
    return True


def write_chat_template(folder: Path, template: ChatTemplate) -> None:
    """Write the template into one of our folders."""
    about: dict[str, Any] = {"template": template.source, "names": dict(template.names)}
    about |= {"others": dict(template.others)} if template.others else {}
    files.write(folder / FILE, settings_yaml.to_yaml(about))


def render_chat(
    template: ChatTemplate, messages: Sequence[Message], *, answer: bool = True, **values: Any
) -> str:
    """Return the text of a chat; answer: with the mark after which the model's turn begins.

    messages: each with a role and a content: a text, a list of {"type": "text", "text": ...}, or
    none beside tool_calls. values: what else the template knows, such as tools (a list of JSON
    schemas) or enable_thinking. Raises ConfigError for messages that are none, and where the
    template refuses them; CheckpointError where the template itself is wrong, or goes out of
    bounds.
    """
    rows = [_checked(number, message) for number, message in enumerate(messages)]
    if not rows:
        raise ConfigError("a chat needs at least one message")
    tools, others = values.get("tools"), template.others or {}
    if tools is not None and not (
        isinstance(tools, Sequence) and all(isinstance(tool, Mapping) for tool in tools)
    ):
        raise ConfigError("tools= must be a list of JSON schemas, each a mapping")
    if tools is not None and "tool_use" in others:
        template = template._replace(source=others["tool_use"])
    elif not template.source and others:
        raise ConfigError(
            f"{template.where} has the templates {', '.join(others)} and none called default; "
            f"pass one of them: template._replace(source=template.others[...])"
        )
    parts = [row["content"] for row in rows if isinstance(row.get("content"), list)]
    if not parts:
        return _render(template, rows, answer, values)
    joined = [
        row | {"content": "".join(part["text"] for part in row["content"])}
        if isinstance(row.get("content"), list)
        else row
        for row in rows
    ]
    try:
        text = _render(template, rows, answer, values)
    except UserError:  # a template of texts alone
        return _render(template, joined, answer, values)
    words = [part["text"].strip() for content in parts for part in content]
    as_strings = all(word in text for word in words) and "{'type': 'text'" not in text
    return text if as_strings else _render(template, joined, answer, values)


def _checked(number: int, message: Message) -> dict[str, Any]:
    """Return a message as templates get it: without keys of nothing, its thoughts by all names."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ConfigError(f"message {number} has no role; write role and content")
    row = {key: value for key, value in message.items() if value is not None}
    content = row.get("content")
    if isinstance(content, list):
        for part in content:
            known = isinstance(part, Mapping) and part.get("type") == "text"
            if not (known and isinstance(part.get("text"), str)):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise ConfigError(
                    f"message {number}: a part of its content is {kind!r}; only parts "
                    f'{{"type": "text", "text": ...}} are read'
                )
    elif not isinstance(content, str) and not (content is None and row.get("tool_calls")):
        raise ConfigError(f"message {number}: content is no text; only texts are read")
    thoughts = next((row[key] for key in REASONING if key in row), None)
    if thoughts is not None:
        row = {"thinking": thoughts, **row, "reasoning_content": thoughts}
    return row


def _render(
    template: ChatTemplate, rows: list[dict[str, Any]], answer: bool, values: Mapping[str, Any]
) -> str:
    given = {"tools": None, "documents": None, **template.names, **values, "messages": rows}
    return sandbox.render(
        template.source, template.where, given | {"add_generation_prompt": answer}
    )


def check_values(template: ChatTemplate, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value that the template does not read, or that is the chat's own."""
    source = "\n".join([template.source, *(template.others or {}).values()])
    names = set(re.findall(r"[A-Za-z_]\w*", source))
    for name, value in values.items():
        if name in ("messages", "add_generation_prompt", "template", "answer"):
            raise ConfigError(f"{name}={value!r:.40}: the chat itself says that; drop it")
        if name not in names and value is not None:
            raise ConfigError(
                f"{name}={value!r:.40} has no effect: {template.where} does not read it"
                f"{nearest(name, names)}; drop it"
            )


def encode_chat(
    template: ChatTemplate, tokenizer: Any, messages: Sequence[Message], **values: Any
) -> list[int]:
    """Return the ids of a chat up to where the model's turn begins; values: as of `render_chat`.

    Marks are those that the template writes. A piece like them in a message is text, so that
    nobody's words can end their turn (transformers: `sanitize_control_tokens`).
    """
    encode = getattr(tokenizer, "encode_marked", None)
    if encode is None:
        kind = type(tokenizer).__name__.lower()
        raise ConfigError(f"chat needs a tokenizer with marks, and a {kind} one has none")
    text = render_chat(template, messages, **values)
    marks = re.compile("|".join(map(re.escape, sorted(tokenizer.marks(), key=len, reverse=True)))
                       or "(?!)")  # fmt: skip
    given = [list(messages), values]
    words = list(_strings(given))
    if not any(marks.search(word) for word in words):
        return encode(text)
    # Where do somebody's words come to lie? The template says it of the same chat in which what
    # looks like a mark is covered, character by character.
    used = set(text).union(*words)
    cover = next(c for c in map(chr, COVERS) if c not in used)
    rows, others = _covered(given, marks, cover)
    covered = render_chat(template, rows, **others)
    pairs = list(zip(text, covered, strict=False))
    if len(text) != len(covered) or any(a != b != cover for a, b in pairs):
        mark = next(found[0] for word in words if (found := marks.search(word)))
        raise ConfigError(
            f"{template.where} treats {mark!r}, which a message holds, in a way of its own, so "
            f"that it can't be told from a mark; take it out of the message"
        )
    plain = [found.span() for found in re.finditer(f"{cover}+", covered)]
    return encode(text, plain=plain)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _covered(value: Any, marks: re.Pattern[str], cover: str) -> Any:
    if isinstance(value, str):
        return marks.sub(lambda match: cover * len(match[0]), value)
    if isinstance(value, Mapping):
        return {
            _covered(key, marks, cover): _covered(item, marks, cover) for key, item in value.items()
        }
    return [_covered(item, marks, cover) for item in value] if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _text(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return files.read_artifact(path, "chat template", MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8") from error


def _named(about: Mapping[str, Any]) -> dict[str, str | None]:
    """Return {name: template} of a file's chat_template, which is default where it stands alone."""
    value = about.get("chat_template")
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, dict)]
        value = {row.get("name"): row.get("template") for row in rows}
    if isinstance(value, str):
        return {"default": value} if value else {}
    templates = value.items() if isinstance(value, dict) else ()
    return {k: v for k, v in templates if isinstance(k, str) and isinstance(v, str)}

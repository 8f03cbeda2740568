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

    others: templates of other names; "tool_use" is taken where tools are given. today: the day
    (YYYY-MM-DD) of chats to learn from, for a template that writes the date.
    """

    source: str
    names: Mapping[str, str]
    where: str = "the template"
    others: Mapping[str, str] | None = None
    today: str | None = None

    @property
    def sources(self) -> str:
        """All its templates as one text."""
        return "\n".join([self.source, *(self.others or {}).values()])


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
        today = stored.get("today")
        return ChatTemplate(source, names, str(folder / FILE), others, today and str(today))
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
    about |= {"today": template.today} if template.today else {}
    files.write(folder / FILE, settings_yaml.to_yaml(about))


def render_chat(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    answer: bool = True,
    marks: bool = False,
    images: bool = False,
    **values: Any,
) -> str:
    """Return the text of a chat; answer: with the mark after which the model's turn begins.

    marks: as of `sandbox.render`. messages: each with a role and a content: a text, a list of
    {"type": "text", "text": ...}, or none beside tool_calls; of a model that reads images, the
    list may hold {"type": "image", ...}, in whose places the template writes a mark. values: what
    else the template knows, such as tools (a list of JSON schemas) or enable_thinking. Raises
    ConfigError for messages that are none, and where the template refuses them; CheckpointError
    where the template itself is wrong, or goes out of bounds.
    """
    rows = [_checked(number, message, images) for number, message in enumerate(messages)]
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
    if images:
        text = _render(template, rows, answer, marks, values)
        words = [row["content"].strip() for row in rows if isinstance(row.get("content"), str)]
        if not all(word in text for word in words):  # a template that reads lists alone
            text = _render(template, [*map(_in_parts, rows)], answer, marks, values)
        return text
    if not parts:
        return _render(template, rows, answer, marks, values)
    joined = [
        row | {"content": "".join(part["text"] for part in row["content"])}
        if isinstance(row.get("content"), list)
        else row
        for row in rows
    ]
    try:
        text = _render(template, rows, answer, marks, values)
    except UserError:  # a template of texts alone
        return _render(template, joined, answer, marks, values)
    words = [part["text"].strip() for content in parts for part in content]
    as_strings = all(word in text for word in words) and "{'type': 'text'" not in text
    return text if as_strings else _render(template, joined, answer, marks, values)


def _in_parts(row: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content, if a text, is a list with it."""
    content = row.get("content")
    return row | {"content": [{"type": "text", "text": content}]} if type(content) is str else row


def images_of(messages: Sequence[Message]) -> list[Any]:
    """Return the images in a chat, files or bytes [height, width, 3], in their order.

    Raises ConfigError for one of which a part does not say where it is.
    """
    found = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                own = next((part[key] for key in ("image", "path") if key in part), None)
                if own is None:
                    raise ConfigError(
                        f"message {number}: an image is {{'type': 'image', 'path': FILE}}, or with "
                        f"'image': bytes [height, width, 3]"
                    )
                found.append(own)
    return found


def _checked(number: int, message: Message, images: bool = False) -> dict[str, Any]:
    """Return a message as templates get it: without keys of nothing, its thoughts by all names."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ConfigError(f"message {number} has no role; write role and content")
    row = {key: value for key, value in message.items() if value is not None}
    content = row.get("content")
    if isinstance(content, list):
        if images:
            row["content"] = content = [
                {"type": "image"} if isinstance(p, Mapping) and p.get("type") == "image" else p
                for p in content
            ]
        for part in content:
            if images and part == {"type": "image"}:
                continue
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
    template: ChatTemplate,
    rows: list[dict[str, Any]],
    answer: bool,
    marks: bool,
    values: Mapping[str, Any],
) -> str:
    given = {"tools": None, "documents": None, **template.names, **values, "messages": rows}
    given |= {"add_generation_prompt": answer}
    return sandbox.render(template.source, template.where, given, marks=marks)


def check_values(template: ChatTemplate, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value that the template does not read, or that is the chat's own."""
    names = set(re.findall(r"[A-Za-z_]\w*", template.sources))
    for name, value in values.items():
        if name in ("messages", "add_generation_prompt", "template", "answer"):
            raise ConfigError(f"{name}={value!r:.40}: the chat itself says that; drop it")
        if name not in names and value is not None:
            raise ConfigError(
                f"{name}={value!r:.40} has no effect: {template.where} does not read it"
                f"{nearest(name, names)}; drop it"
            )


class LaidChat(NamedTuple):
    """The text of a chat, and the spans of it in which what looks like a mark is only text."""

    text: str
    plain: tuple[tuple[int, int], ...] = ()

    def encode(self, tokenizer: Any, end: int | None = None) -> list[int]:
        """Return the ids of the text up to a character."""
        if end is None:
            return tokenizer.encode_marked(self.text, plain=self.plain)
        plain = [(low, min(high, end)) for low, high in self.plain if low < end]
        return tokenizer.encode_marked(self.text[:end], plain=plain)


def encode_chat(
    template: ChatTemplate, tokenizer: Any, messages: Sequence[Message], **values: Any
) -> list[int]:
    """Return the ids of a chat up to where the model's turn begins; values: as of `render_chat`."""
    return lay_chat(template, tokenizer, messages, **values).encode(tokenizer)


def lay_chat(
    template: ChatTemplate, tokenizer: Any, messages: Sequence[Message], **values: Any
) -> LaidChat:
    """Return the text of a chat for a tokenizer; values: as of `render_chat`.

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
        return LaidChat(text)
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
    return LaidChat(text, tuple(found.span() for found in re.finditer(f"{cover}+", covered)))


def has_generation_marks(template: ChatTemplate) -> bool:
    """Return whether the template marks what the model says, with {% generation %}."""
    return re.search(r"\{%[-+]?\s*generation\b", template.sources) is not None


def generation_spans(
    template: ChatTemplate, messages: Sequence[Message], **values: Any
) -> tuple[str, list[tuple[int, int]]]:
    """Return a chat's text, and the spans [begin, end) of it that {% generation %} marks."""
    marked = render_chat(template, messages, marks=True, **values)
    parts, spans, begins, size = [], [], [], 0
    for part in re.split(f"([{sandbox.OPEN}{sandbox.CLOSE}])", marked):
        if part == sandbox.OPEN:
            begins.append(size)
        elif part == sandbox.CLOSE:
            begin = begins.pop()
            spans += [] if begins or begin == size else [(begin, size)]
        else:
            parts.append(part)
            size += len(part)
    return "".join(parts), spans


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

"""`jaxgen chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, flags, inputs, outputs, paths, start, texts
from jaxgen.cli.arguments import at_least
from jaxgen.cli.conversation import Conversation
from jaxgen.cli.index import Documents, open_index
from jaxgen.errors import ConfigError
from jaxgen.text import tasks
from jaxgen.text.request import SEEDS, Generation

Tools = Annotated[
    list[str] | None,
    Parameter(
        help="what the model may call: FILE.py, whose functions with type hints are meant; "
        "mcp:COMMAND, a server of the Model Context Protocol; repeatable. Or a JSON list of "
        "schemas, of which the calls are shown",
        consume_multiple=False,
    ),
]
Calls = Annotated[int, at_least(1), Parameter(help="of --tools in a turn, at most")]
Confirming = Annotated[bool, Parameter(help="ask before each call of --tools")]
Values = Annotated[
    list[str] | None,
    Parameter(
        help="KEY=VALUE that the chat template reads, such as enable_thinking=false; repeatable",
        consume_multiple=False,
    ),
]
System = Annotated[str | None, Parameter(help="what the system says before the first message")]
Images = Annotated[
    list[str] | None,
    Parameter(
        help="an image file before each message, of a model that reads images; repeatable",
        consume_multiple=False,
    ),
]
Keep = Annotated[
    str | None,
    Parameter(
        name="--conversation",
        help="a file that keeps the chat, and from which it goes on; messages are its turns",
    ),
]


def chat(
    run: texts.Folder,
    /,
    *message: Annotated[str, Parameter(help="a message; none: typed ones, or those of --input")],
    system: System = None,
    conversation: Keep = None,
    tools: Tools = None,
    calls: Calls = 8,
    confirm: Confirming = False,
    template_value: Values = None,
    index: Documents = None,
    image: Images = None,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Talk with a model, in the form that its folder's chat template gives to messages.

    On a terminal each line typed is answered, and all that was said before counts, as
    far back as the context goes; /help lists what else can be typed, Ctrl-D ends.

    Several messages, and the lines of a pipe, are separate chats, which know nothing
    of one another; with --conversation FILE they are turns of one. A line of --input
    (.jsonl) is a chat: an object with "messages", a list of objects with "role" and
    "content", and if need be "tools" and "chat_template_kwargs". A line of standard
    input is such an object, or a message.

    For example:
        jaxgen chat models/qwen
        jaxgen chat models/qwen "What is a monad?" --temperature 0
        jaxgen chat models/qwen "And a functor?" --conversation monads.jsonl
        jaxgen chat models/qwen --template-value enable_thinking=false
        jaxgen chat models/qwen --input chats.jsonl --output answers.jsonl
        jaxgen chat models/qwen --tools functions.py --confirm
        jaxgen chat models/qwen --tools "mcp:python server.py"
        jaxgen chat models/qwen --index docs.index
        jaxgen chat models/llava "What is this?" --image dog.jpg
    """
    wanted = flags.settings_of(settings)
    sources = [word for word in tools or () if word.endswith(".py") or word.startswith("mcp:")]
    schemas = [word for word in tools or () if word not in sources]
    if len(schemas) > bool(schemas) or (schemas and sources):
        raise ConfigError(f"--tools {schemas[0]} must be the only one, or FILE.py or mcp:COMMAND")
    if confirm and not (sources and sys.stdin.isatty()):
        raise ConfigError(
            "--confirm needs --tools FILE.py or mcp:COMMAND, and a terminal to ask on"
        )
    if index is not None and tools:
        raise ConfigError(f"--index {index} and --tools exclude each other; drop one")
    values = _values(template_value, schemas[0] if schemas else None)
    first = [] if system is None else [{"role": "system", "content": system}]
    if wanted.overflow == "cut":
        raise ConfigError("--overflow cut has no effect: a chat that is cut is another chat")
    _check_given(message, job.input, image or (), (conversation, tools, index))
    typed = not message and job.input is None and sys.stdin.isatty()
    start.prepare_jax(paths.cache())
    ground = _grounder(index)
    with ExitStack() as stack:
        helper = _open_helper(stack, sources, calls, confirm) if sources else None
        if typed or conversation is not None:
            lines = None if typed else message or _lines()
            keep = None if conversation is None else Path(conversation)
            _check_one_chat(job, wanted)
            _converse(run, job, first, wanted, values, helper, keep, lines, ground)
            return
        asked: list[Any] = [[*first, _said(text, image or ())] for text in message]

        def work(model, conversations, progress, detail):
            if helper is not None:
                return _with_tools(model, conversations, progress, helper, wanted, values)
            return tasks.reply(
                model,
                [_grounded_chat(ground, model, word) for word in conversations],
                wanted,
                chat_template_kwargs=values,
                batch=min(job.batch, 8),
                progress=progress,
                detail=detail,
            )

        texts.generate(run, asked or list(_chats(job.input, first)), job, wanted, work)


def _check_given(
    messages: Sequence[str], source: str | None, images: Sequence[str], others: tuple[Any, ...]
) -> None:
    """Raise ConfigError unless images are files, before messages that are chats by themselves."""
    if messages and source is not None:
        raise ConfigError(f"--input {source} and messages exclude each other; remove one")
    if images and (not messages or any(others)):
        raise ConfigError(
            f"--image {images[0]} needs a message, and no --conversation, --tools or --index; in "
            f'a line of --input an image is {{"type": "image", "path": FILE}}, a part of a content'
        )
    if absent := [name for name in images if not Path(name).is_file()]:
        raise ConfigError(f"{absent[0]} is no file; name an image file")


def _said(text: str, images: Sequence[str]) -> dict[str, Any]:
    """Return a user's message, with image files before its text."""
    seen = [{"type": "image", "path": path} for path in images]
    return {"role": "user", "content": [*seen, {"type": "text", "text": text}] if seen else text}


def _grounder(index: str | None) -> Callable[[Any, Any], tuple[Any, list[str]]]:
    """Return what puts passages of an index into a chat: (session, messages) -> (messages, where).

    where: the places of the passages, "document:start-end".
    """
    if index is None:
        return lambda session, messages: (messages, [])
    opened = open_index(index)
    from jaxgen.knowledge.answer import grounded

    def ground(session: Any, messages: Any) -> tuple[Any, list[str]]:
        after, hits = grounded(opened, session, messages)
        return after, [f"{hit.document}:{hit.start}-{hit.end}" for hit in hits]

    return ground


def _grounded_chat(ground: Callable[[Any, Any], tuple[Any, list[str]]], model: Any, chat: Any):
    """Return a chat of messages, or a mapping with them, with passages; say where they are."""
    from jaxgen.text.session import session_of

    rows = chat["messages"] if isinstance(chat, dict) else chat
    rows, places = ground(session_of(model), rows)
    _tell_context(places)
    return {**chat, "messages": rows} if isinstance(chat, dict) else rows


def _tell_context(places: list[str], dropped: int = 0) -> None:
    if places:
        print(f"(from {', '.join(places)})", file=sys.stderr)
    if dropped:
        print(f"(the oldest turns left the context: {dropped})", file=sys.stderr)


def _values(words: list[str] | None, tools: str | None) -> dict[str, Any]:
    """Return what the template reads: values as JSON where they are such, else as text."""
    values: dict[str, Any] = {}
    for word in words or ():
        key, equals, text = word.partition("=")
        if not (equals and key.isidentifier()):
            raise ConfigError(
                f"--template-value {word} must be KEY=VALUE, as enable_thinking=false"
            )
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    if tools is not None:
        try:
            values["tools"] = json.loads(inputs.read_text(tools, "--tools"))
        except ValueError as error:
            raise ConfigError(f"--tools {tools} is no JSON: {error}") from None
        if not isinstance(values["tools"], list):
            raise ConfigError(f"--tools {tools} holds no list; write [...] around its functions")
    return values


def _lines() -> list[str]:
    """Return the lines of standard input that are not blank; ConfigError for none."""
    lines = files.lines(inputs.read_text("-", "standard input"))
    if not (lines := [line for line in lines if line.strip()]):
        raise ConfigError("standard input has no line; type a message, or give --input")
    return lines


def _chats(source: str | None, first: list[dict[str, str]]) -> Iterator[Any]:
    """Yield the chats of --input, or those of standard input, where a line may be a message."""
    if source is None:
        lines = _lines()
        if not lines[0].lstrip().startswith("{"):
            yield from ([*first, {"role": "user", "content": line}] for line in lines)
            return
        rows = inputs.parse_objects(lines, "-", ["messages"])
    else:
        rows = inputs.objects(source, ["messages"])
    yield from (_chat(place, row, first) for place, row in rows)


def _chat(place: str, row: dict[str, Any], first: list[dict[str, str]]) -> Any:
    """Return the chat of a line of --input: its messages alone, or with what else it says."""
    kinds = {"messages": list, "tools": list | None, "chat_template_kwargs": dict | None}
    for key, kind in kinds.items():
        if not isinstance(row.get(key), kind):
            raise ConfigError(f"{place}: {key} is no {'mapping' if 'kwargs' in key else 'list'}")
    more = {key: row[key] for key in kinds if row.get(key) is not None}
    messages = [*first, *row["messages"]]
    return more | {"messages": messages} if len(more) > 1 else messages


@dataclass(frozen=True)
class _Helper:
    """What answers a chat with tools: each call is shown, and asked for if wanted."""

    tools: Sequence[Any]
    calls: int
    confirm: bool

    def answer(self, session: Any, messages: Any, settings: Generation, values: Any) -> list[Any]:
        """Return the turns that answer a chat."""
        from jaxgen.text import assistant

        confirm = _ask if self.confirm else None
        how = {"calls": self.calls, "confirm": confirm, "shown": _show, "values": values}
        return assistant.answer(session, messages, self.tools, settings, **how)


def _open_helper(stack: ExitStack, sources: Sequence[str], calls: int, confirm: bool) -> _Helper:
    """Return a helper with the tools of sources, whose servers run as long as the stack."""
    from jaxgen.text.tool_sources import open_tools

    try:
        tools = stack.enter_context(open_tools(sources))
    except ConfigError as error:
        raise type(error)(str(error).replace("tools=", "--tools ", 1)) from error
    return _Helper(tools, calls, confirm)


def _call_line(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _show(name: str, arguments: dict[str, Any], result: str) -> None:
    from jaxgen.train.display import printable

    text = printable(" ".join(result.split()))
    short = text if len(text) <= 200 else f"{text[:200]}..."
    print(f"[{_call_line(name, arguments)} -> {short}]", file=sys.stderr)


def _ask(name: str, arguments: dict[str, Any]) -> bool:
    print(f"call {_call_line(name, arguments)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _check_one_chat(job: texts.Job, wanted: Generation) -> None:
    if job.input is not None or job.output is not None:
        name = "--input" if job.output is None else "--output"
        raise ConfigError(f"{name} needs separate chats: give messages, and no --conversation")
    if wanted.samples > 1 or wanted.top_logprobs is not None:
        name = "--samples" if wanted.samples > 1 else "--top-logprobs"
        raise ConfigError(f"{name} has no effect in a conversation; give messages or --input")


def _converse(
    run: str,
    job: texts.Job,
    first: list[dict[str, str]],
    wanted: Generation,
    values: dict[str, Any],
    helper: _Helper | None,
    path: Path | None,
    lines: Sequence[str] | None,
    ground: Callable[[Any, Any], tuple[Any, list[str]]],
) -> None:
    """Answer the lines of a terminal (None), or those given, each as a turn of one chat."""
    home, which, adapters = paths.adapted(run, job.step, job.adapter)
    from jaxgen.pretrained.chat_template import read_chat_template
    from jaxgen.text import tool_calls
    from jaxgen.text.session import open_session

    with exits.in_folder(home), flags.named():
        session = open_session(home, step=which, adapter=adapters)
        template = read_chat_template(home)
        texts.tell_defaults(wanted, session.model.generation_config)
        places: list[list[str]] = [[]]  # of the passages before the last message

        def encode(messages: Sequence[Any]) -> Sequence[int]:
            if helper is None:
                places[0], messages = ground(session, messages)[::-1]
                return session.chat_ids(messages, template, **values)
            schemas = [tool.schema for tool in helper.tools]
            return tool_calls.chat_ids(session, template, messages, schemas, values)

        context = session.context
        # Where the caller names no length, a quarter of the context is kept for an answer.
        answers = min(wanted.max_new_tokens or context // 4, context - 1)
        conversation = Conversation(first, encode, context - answers, path)

        def answer(_: int, line: str) -> None:
            if lines is None and line.startswith("/"):
                print(conversation.command(line), file=sys.stderr)
                return
            ids, dropped = conversation.ask(line)
            try:
                _tell_context(places[0], dropped)
                turn = sum(one["role"] == "user" for one in conversation.turns) - 1
                settings = replace(wanted, seed=(wanted.seed + turn) % SEEDS)
                if helper is None:
                    turns = _streamed(session, ids, settings)
                else:
                    turns = helper.answer(session, conversation.messages, settings, values)
                    outputs.put([turns[-1]["content"]])
            except BaseException:
                conversation.withdraw()
                raise
            print()
            conversation.answered(turns)

        if lines is None:
            outputs.converse("a message, or /help,", answer)
        for line in lines or ():
            answer(0, line)


def _streamed(session: Any, ids: Sequence[int], settings: Generation) -> list[dict[str, str]]:
    """Print an answer as it comes, and return it as a turn."""
    return [{"role": "assistant", "content": outputs.put(session.stream(ids, settings))}]


def _with_tools(
    model: Any, chats: Any, progress: Any, helper: _Helper, wanted: Generation, values: Any
) -> list[list[Any]]:
    """Answer chats one after the other, with tools."""
    from jaxgen.text.batch_decoding import Completion
    from jaxgen.text.session import Reason, session_of

    session, answers = session_of(model), []
    for number, chat in enumerate(chats):
        messages = chat["messages"] if isinstance(chat, dict) else chat
        said = helper.answer(session, messages, wanted, values)[-1]["content"]
        answers.append([Completion(said, Reason.STOP, [], 0)])
        progress(number + 1, len(chats))
    return answers

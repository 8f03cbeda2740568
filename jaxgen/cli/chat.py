"""`jaxgen chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, flags, inputs, outputs, paths, start, texts
from jaxgen.cli.conversation import Conversation
from jaxgen.errors import ConfigError
from jaxgen.text import tasks
from jaxgen.text.request import SEEDS, Generation

Tools = Annotated[
    str | None, Parameter(help="a file with a JSON list of functions that the model may call")
]
Values = Annotated[
    list[str] | None,
    Parameter(
        help="KEY=VALUE that the chat template reads, such as enable_thinking=false; repeatable",
        consume_multiple=False,
    ),
]
System = Annotated[str | None, Parameter(help="what the system says before the first message")]


def chat(
    run: texts.Folder,
    /,
    *message: Annotated[str, Parameter(help="a message; none: typed ones, or those of --input")],
    system: System = None,
    tools: Tools = None,
    template_value: Values = None,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Talk with a model, in the form that its folder's chat template gives to messages.

    On a terminal each line typed is answered, and all that was said before counts, as
    far back as the context goes; /help lists what else can be typed, Ctrl-D ends. A
    line of --input (.jsonl) is a chat of its own: an object with "messages", a list
    of objects with "role" and "content", and if need be "tools" and
    "chat_template_kwargs". A line of standard input is such an object, or a message.

    For example:
        jaxgen chat models/qwen
        jaxgen chat models/qwen "What is a monad?" --temperature 0
        jaxgen chat models/qwen --template-value enable_thinking=false
        jaxgen chat models/qwen --input chats.jsonl --output answers.jsonl
    """
    wanted = flags.settings_of(settings)
    values = _values(template_value, tools)
    first = [] if system is None else [{"role": "system", "content": system}]
    if wanted.overflow == "cut":
        raise ConfigError("--overflow cut has no effect: a chat that is cut is another chat")
    if not message and job.input is None and sys.stdin.isatty():
        if job.output is not None:
            raise ConfigError("--output needs messages, or chats from --input")
        _converse(run, job.step, job.adapter, first, wanted, values)
        return
    if message and job.input is not None:
        raise ConfigError(f"--input {job.input} and messages exclude each other; remove one")
    chats: list[Any] = [[*first, {"role": "user", "content": text}] for text in message]
    if not message:
        chats = list(_chats(job.input, first))

    def work(model, conversations, progress, detail):
        return tasks.reply(
            model,
            conversations,
            wanted,
            chat_template_kwargs=values,
            batch=min(job.batch, 8),
            progress=progress,
            detail=detail,
        )

    texts.generate(run, chats, job, wanted, work)


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


def _chats(source: str | None, first: list[dict[str, str]]) -> Iterator[Any]:
    """Yield the chats of --input, or those of standard input, where a line may be a message."""
    if source is None:
        lines = [
            line for line in files.lines(inputs.read_text("-", "standard input")) if line.strip()
        ]
        if not lines:
            raise ConfigError("standard input has no line; type a message, or give --input")
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


def _converse(
    run: str,
    step: str | None,
    adapter: Sequence[str],
    messages: list[dict[str, str]],
    wanted: Generation,
    values: dict[str, Any],
) -> None:
    home, which, adapters = paths.adapted(run, step, adapter)
    start.prepare_jax(paths.cache())
    from jaxgen.pretrained.chat_template import read_chat_template
    from jaxgen.text.session import open_session

    with exits.in_folder(home), flags.named():
        session = open_session(home, step=which, adapter=adapters)
        template = read_chat_template(home)
        texts.tell_defaults(wanted, session.model.generation_config)

        context = session.context
        # Where the caller names no length, a quarter of the context is kept for an answer.
        answers = min(wanted.max_new_tokens or context // 4, context - 1)
        encode = partial(_encode, session, template, values)
        conversation = Conversation(messages, encode, context - answers)

        def answer(turn: int, line: str) -> None:
            if line.startswith("/"):
                print(conversation.command(line), file=sys.stderr)
                return
            ids, dropped = conversation.ask(line)
            if dropped:
                print(f"(the oldest turns left the context: {dropped})", file=sys.stderr)
            settings = replace(wanted, seed=(wanted.seed + turn) % SEEDS)
            conversation.answered(outputs.put(session.stream(ids, settings)))
            print()

        outputs.converse("a message, or /help,", answer)


def _encode(session: Any, template: Any, values: dict[str, Any], messages: Any) -> Any:
    return session.chat_ids(messages, template, **values)

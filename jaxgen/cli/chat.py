"""`jaxgen chat`."""

from __future__ import annotations

import inspect
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, flags, inputs, outputs, paths, start, texts
from jaxgen.cli.arguments import at_least
from jaxgen.cli.conversation import Conversation
from jaxgen.errors import ConfigError
from jaxgen.text import tasks
from jaxgen.text.request import SEEDS, Generation

Tools = Annotated[
    str | None,
    Parameter(
        help="functions that the model may call: a .py file, whose own they are and which are "
        "called; or a JSON list of their schemas, of which the calls are shown"
    ),
]
Calls = Annotated[
    int, at_least(1), Parameter(help="of functions of --tools FILE.py in a turn, at most")
]
Confirming = Annotated[bool, Parameter(help="ask before each call of --tools FILE.py")]
Values = Annotated[
    list[str] | None,
    Parameter(
        help="KEY=VALUE that the chat template reads, such as enable_thinking=false; repeatable",
        consume_multiple=False,
    ),
]
# (session, messages, settings, values of the template) -> the turns that answer.
Helper = Callable[[Any, Any, Generation, Any], list[Any]]
System = Annotated[str | None, Parameter(help="what the system says before the first message")]


def chat(
    run: texts.Folder,
    /,
    *message: Annotated[str, Parameter(help="a message; none: typed ones, or those of --input")],
    system: System = None,
    tools: Tools = None,
    calls: Calls = 8,
    confirm: Confirming = False,
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
        jaxgen chat models/qwen --tools functions.py --confirm
    """
    wanted = flags.settings_of(settings)
    called = None if tools is None or not tools.endswith(".py") else _functions(tools)
    helper = None if called is None else _helper(called, calls, confirm)
    if confirm and (helper is None or not sys.stdin.isatty()):
        raise ConfigError("--confirm needs --tools FILE.py and a terminal to ask on")
    values = _values(template_value, None if called else tools)
    first = [] if system is None else [{"role": "system", "content": system}]
    if wanted.overflow == "cut":
        raise ConfigError("--overflow cut has no effect: a chat that is cut is another chat")
    if not message and job.input is None and sys.stdin.isatty():
        if job.output is not None:
            raise ConfigError("--output needs messages, or chats from --input")
        _converse(run, job, first, wanted, values, helper)
        return
    if message and job.input is not None:
        raise ConfigError(f"--input {job.input} and messages exclude each other; remove one")
    chats: list[Any] = [[*first, {"role": "user", "content": text}] for text in message]
    if not message:
        chats = list(_chats(job.input, first))

    def work(model, conversations, progress, detail):
        if helper is not None:
            return _with_functions(model, conversations, progress, helper, wanted, values)
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
    job: texts.Job,
    messages: list[dict[str, str]],
    wanted: Generation,
    values: dict[str, Any],
    helper: Helper | None,
) -> None:
    home, which, adapters = paths.adapted(run, job.step, job.adapter)
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
            if helper is not None:
                said = helper(session, [*conversation.first, *conversation.turns], settings, values)
                conversation.turns += said
                outputs.put([said[-1]["content"], "\n"])
                return
            conversation.answered(outputs.put(session.stream(ids, settings)))
            print()

        outputs.converse("a message, or /help,", answer)


def _functions(path: str) -> list[Any]:
    """Return the functions of a Python file that are its own and public; ConfigError for none."""
    inputs.read_text(path, "--tools")
    try:
        names = runpy.run_path(path, run_name="tools")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--tools {path} can't be run: {said}") from error
    own = {
        name: one
        for name, one in names.items()
        if inspect.isfunction(one) and one.__module__ == "tools" and not name.startswith("_")
    }
    if not own:
        raise ConfigError(f"--tools {path} has no public function of its own; write one with def")
    return list(own.values())


def _helper(functions: list[Any], calls: int, confirm: bool) -> Helper:
    """Return what answers a chat with functions: each call is shown, and asked for if wanted."""

    def line(name: str, given: dict[str, Any]) -> str:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    def show(name: str, given: dict[str, Any], result: str) -> None:
        print(f"[{line(name, given)} -> {result[:200]}]", file=sys.stderr)

    def ask(name: str, given: dict[str, Any]) -> bool:
        print(f"call {line(name, given)}? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def answer(session: Any, messages: Any, settings: Generation, values: Any) -> list[Any]:
        from jaxgen.text import assistant

        how = {"calls": calls, "confirm": ask if confirm else None, "shown": show}
        return assistant.answer(session, messages, functions, settings, values=values, **how)

    return answer


def _with_functions(
    model: Any, chats: Any, progress: Any, helper: Helper, wanted: Generation, values: Any
) -> list[list[Any]]:
    """Answer chats one after the other, with functions."""
    from jaxgen.text.batch_decoding import Completion
    from jaxgen.text.session import Reason, session_of

    session, answers = session_of(model), []
    for number, chat in enumerate(chats):
        messages = chat["messages"] if isinstance(chat, dict) else chat
        said = helper(session, messages, wanted, values)[-1]["content"]
        answers.append([Completion(said, Reason.STOP, [], 0)])
        progress(number + 1, len(chats))
    return answers


def _encode(session: Any, template: Any, values: dict[str, Any], messages: Any) -> Any:
    return session.chat_ids(messages, template, **values)

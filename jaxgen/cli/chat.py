"""`jaxgen chat`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen.cli import exits, flags, inputs, outputs, paths, start, texts
from jaxgen.errors import ConfigError
from jaxgen.text import tasks
from jaxgen.text.request import SEEDS, Generation

System = Annotated[str | None, Parameter(help="what the system says before the first message")]


def chat(
    run: texts.Folder,
    /,
    *message: Annotated[str, Parameter(help="a message; none: typed ones, or those of --input")],
    system: System = None,
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Talk with a model, in the form that its folder's chat template gives to messages.

    On a terminal each line typed is answered, and all that was said before counts;
    Ctrl-D ends. A line of --input (.jsonl) is a chat of its own: an object with
    "messages", a list of objects with "role" and "content".

    For example:
        jaxgen chat models/qwen
        jaxgen chat models/qwen "What is a monad?" --temperature 0
        jaxgen chat models/qwen --input chats.jsonl --output answers.jsonl
    """
    wanted = flags.settings_of(settings)
    first = [] if system is None else [{"role": "system", "content": system}]
    if wanted.overflow == "cut":
        raise ConfigError("--overflow cut has no effect: a chat that is cut is another chat")
    if not message and job.input is None and sys.stdin.isatty():
        if job.output is not None:
            raise ConfigError("--output needs messages, or chats from --input")
        _converse(run, job.step, first, wanted)
        return
    if message and job.input is not None:
        raise ConfigError(f"--input {job.input} and messages exclude each other; remove one")
    chats: list[Any] = [[*first, {"role": "user", "content": text}] for text in message]
    if not message:
        rows = inputs.objects(job.input or "-", ["messages"])
        chats = [[*first, *row["messages"]] for _, row in rows]

    def work(model, conversations, progress, detail):
        return tasks.reply(
            model,
            conversations,
            wanted,
            batch=min(job.batch, 8),
            progress=progress,
            detail=detail,
        )

    texts.generate(run, chats, job, wanted, work)


def _converse(
    run: str, step: str | None, messages: list[dict[str, str]], wanted: Generation
) -> None:
    home, which = paths.model(run, step)
    start.prepare_jax(paths.cache())
    from jaxgen.pretrained.chat_template import read_chat_template
    from jaxgen.text.session import open_session

    with exits.in_folder(home), flags.named():
        session, template = open_session(home, step=which), read_chat_template(home)
        texts.tell_defaults(wanted, session.model.generation_config)

        def answer(turn: int, line: str) -> None:
            said = [*messages, {"role": "user", "content": line}]
            settings = replace(wanted, seed=(wanted.seed + turn) % SEEDS)
            text = outputs.put(session.stream(session.chat_ids(said, template), settings))
            print()
            messages[:] = [*said, {"role": "assistant", "content": text}]

        outputs.converse("a message", answer)

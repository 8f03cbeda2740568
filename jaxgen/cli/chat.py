"""`jaxgen chat`."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen.cli import exits, flags, paths, start, texts
from jaxgen.errors import ConfigError, UserError
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
    if job.overflow != "refuse":
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
        chats = [
            [*first, *row["messages"]] for row in texts.objects(job.input or "-", ["messages"])
        ]

    def work(model, wanted_chats, progress, detail):
        from jaxgen.text import tasks

        how = {"batch": min(job.batch, 8), "progress": progress, "detail": detail}
        return tasks.reply(model, wanted_chats, wanted, **how)

    texts.generate(run, chats, job, wanted, work)


def _converse(run: str, step: str | None, said: list[dict[str, str]], wanted: Generation) -> None:
    home, which = paths.model(run, step)
    start.prepare_jax(paths.cache())
    from jaxgen.pretrained.chat_template import read_chat_template
    from jaxgen.text.session import open_session

    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    with exits.in_folder(home), flags.named():
        session, template = open_session(home, step=which), read_chat_template(home)
        texts.tell_defaults(wanted, session.model.generation_config)
        print("Type a message and press Enter; Ctrl-D ends.", file=sys.stderr)
        for turn in range(SEEDS):
            try:
                line = input("> ")
            except EOFError:
                print()
                return
            if not line.strip():
                continue
            asked = [*said, {"role": "user", "content": line}]
            settings = replace(wanted, seed=(wanted.seed + turn) % SEEDS)
            try:
                pieces = session.stream(session.chat_ids(asked, template), settings)
                text = _spoken(pieces)
            except KeyboardInterrupt:  # enough of this one; a second Ctrl-C, at the prompt, leaves
                print()
            except UserError as error:
                print(f"jaxgen: error: {error}", file=sys.stderr)
            else:
                said = [*asked, {"role": "assistant", "content": text}]


def _spoken(pieces: Any) -> str:
    """Print an answer as it comes, and return it."""
    from jaxgen.train.display import printable

    parts = []
    for piece in pieces:
        parts.append(piece)
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
    print()
    return "".join(parts)

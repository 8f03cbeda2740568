"""`jaxgen chat`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen.cli import exits, paths, start, texts
from jaxgen.cli.arguments import REAL, WHOLE
from jaxgen.errors import ConfigError, UserError

SEEDS = 2**64

System = Annotated[str | None, Parameter(help="what the system says before the first message")]
Length = Annotated[
    int | None, WHOLE, Parameter(help="tokens of an answer; else as the folder says")
]
Temperature = Annotated[
    float | None, REAL, Parameter(help="0 takes the likeliest token; else as the folder says")
]
TopK = Annotated[int | None, WHOLE, Parameter(help="draw from the k likeliest tokens")]
TopP = Annotated[
    float | None, REAL, Parameter(help="draw from the likeliest tokens of this probability")
]
Seed = Annotated[int, WHOLE, Parameter(help="the same seed gives the same answers")]


def chat(
    run: texts.Folder,
    /,
    *message: Annotated[str, Parameter(help="a message; none: typed ones, or those of --input")],
    system: System = None,
    max_new_tokens: Length = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
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
    _check(max_new_tokens, temperature, top_k, top_p, seed)
    how = {"length": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    first = [] if system is None else [{"role": "system", "content": system}]
    if job.overflow != "refuse":
        raise ConfigError("--overflow cut has no effect: a chat that is cut is another chat")
    if not message and job.input is None and sys.stdin.isatty():
        if job.output is not None:
            raise ConfigError("--output needs messages, or chats from --input")
        _converse(run, first, how, seed)
        return
    if message and job.input is not None:
        raise ConfigError(f"--input {job.input} and messages exclude each other; remove one")
    chats: list[Any] = [[*first, {"role": "user", "content": text}] for text in message]
    if not message:
        chats = [
            [*first, *row["messages"]] for row in texts.objects(job.input or "-", ["messages"])
        ]

    def work(model, wanted, progress):
        from jaxgen.text import tasks

        return tasks.chat(
            model, wanted, seed=seed, batch=min(job.batch, 8), progress=progress, **how
        )

    texts.run(run, chats, job, work, str, search=True)


def _check(
    length: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> None:
    for name, value, sound in (
        ("max-new-tokens", length, length is None or length > 0),
        ("temperature", temperature, temperature is None or temperature >= 0),
        ("top-k", top_k, top_k is None or top_k > 0),
        ("top-p", top_p, top_p is None or 0 < top_p <= 1),
        ("seed", seed, 0 <= seed < SEEDS),
    ):
        if not sound:
            raise ConfigError(f"--{name}={value} is out of range; see `jaxgen chat --help`")


def _converse(run: str, said: list[dict[str, str]], how: dict[str, Any], seed: int) -> None:
    home = paths.run_folder(run)
    start.prepare_jax(paths.cache())
    from jaxgen.text import tasks

    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    with exits.in_folder(home):
        model = tasks.open_model(home)
        template = tasks.template_of(model)
        if told := model.generation_config.told():
            print(f"the folder says: {told}", file=sys.stderr)
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
            try:
                pieces = tasks.reply(
                    model, asked, template=template, seed=(seed + turn) % SEEDS, **how
                )
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

"""`jaxgen ask` and `jaxgen calibrate`."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import exits, flags, inputs, outputs, paths, texts
from jaxgen.cli.arguments import Adapters, Step, at_least
from jaxgen.cli.index import Count, Encoder, Home, Verify, headed, open_index
from jaxgen.errors import ConfigError


def ask(
    run: texts.Folder,
    index: Home,
    /,
    *question: Annotated[str, Parameter(help="a question; none: the lines of standard input")],
    count: Count = 5,
    quotes: Annotated[
        int, at_least(0), Parameter(help="sentences of the passages to cite at most")
    ] = 1,
    json: Annotated[bool, Parameter(help="print an object a question")] = False,
    encoder: Encoder = None,
    verify: Verify = "full",
    step: Step = None,
    adapter: Adapters = (),
    settings: flags.Settings = None,
) -> None:
    """Answer questions from the documents of an index, and say where that stands.

    The passages that fit a question best come before it in the prompt. After its answer
    the model copies a sentence of them: each citation stands in its document, word by
    word, from one character to the other. A question that `jaxgen calibrate` says the
    documents don't answer gets "not in the documents"; one without any passage gets
    what the model says by itself.

    For example:
        jaxgen ask smollm2 docs.index "How is an exception raised?" --temperature 0
        jaxgen ask models/qwen docs.index --json < questions.txt
    """
    wanted = flags.settings_of(settings)
    for name in ("samples", "n_best", "top_logprobs"):
        if wanted.gives(name):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect on an answer; drop it")
    _check_order(run, index)
    home, which, adapters = paths.adapted(run, step, adapter)
    questions = inputs.texts(question, None)
    opened = open_index(index, encoder, verify)
    if opened.threshold is None:
        terminal.say(
            f"answers are not held back: `jaxgen calibrate {index} QUESTIONS` sets from when"
        )
    from jaxgen.knowledge import answer
    from jaxgen.text.session import open_session

    with exits.in_folder(home), flags.named():
        session = open_session(home, step=which, adapter=adapters)
        texts.tell_defaults(wanted, session.model.generation_config)
        for heading, words in headed(questions):
            said = answer.ask(session, opened, words, wanted, count=count, quotes=quotes)
            outputs.put([_object(words, said) if json else f"{heading}{_shown(said)}"])


def _check_order(run: str, index: str) -> None:
    """Raise ConfigError where an index stands in the place of the model."""
    if any(Path(run).glob("[0-9]*/*.npy")):
        raise ConfigError(f"{run} is an index, and the model comes first: jaxgen ask {index} {run}")


def calibrate(
    index: Home,
    questions: Annotated[
        str, Parameter(help="a .jsonl file: question, and answerable: true or false, a line")
    ],
    /,
    *,
    count: Count = 5,
    encoder: Encoder = None,
) -> None:
    """Find out what an index does not answer, of held-out questions, and write it there.

    The confidence below which `ask` says "not in the documents" tells questions with
    answerable true from those with false best; of the former alone, 95 of 100 pass.

    For example:
        jaxgen calibrate docs.index questions.jsonl
    """
    rows = [row for _, row in inputs.objects(questions, ["question"], "QUESTIONS")]
    opened = open_index(index, encoder)
    from jaxgen.knowledge import answer

    threshold = answer.calibrate(opened, rows, count)
    terminal.print_rows([
        ("index", index),
        ("questions", f"{len(rows):,}"),
        ("threshold", f"{threshold:.4f}, below which nothing is answered"),
    ])  # fmt: skip


def _object(question: str, said: Any) -> str:
    row = {"question": question, "answer": said.text, "confidence": said.confidence}
    row["citations"] = [citation._asdict() for citation in said.citations]
    row["passages"] = [
        {"document": hit.document, "start": hit.start, "end": hit.end} for hit in said.hits
    ]
    return json_format.dumps(row, ensure_ascii=False) + "\n"


def _shown(said: Any) -> str:
    if not said.hits:
        print("(no passage of the index is in this answer)", file=sys.stderr)
    cited = [
        f'    "{quote}"\n    {document}:{start}-{end}\n'
        for document, start, end, quote in said.citations
    ]
    return "".join([f"{said.text.strip()}\n", *cited])

"""`jaxgen answer`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen.cli import flags, inputs, texts
from jaxgen.cli.arguments import at_least
from jaxgen.errors import ConfigError
from jaxgen.text import tasks

Questions = Annotated[
    str, Parameter(help="a question; none: the lines of --input, or standard input")
]
Context = Annotated[
    str | None,
    Parameter(help="the text that all questions are about; @FILE reads a file"),
]
Best = Annotated[int, at_least(1), Parameter(help="answers to each question")]
Empty = Annotated[
    Literal["refused", "allowed"],
    Parameter(help="whether a head of spans may find that the text holds no answer"),
]


def answer(
    run: texts.Folder,
    /,
    *question: Questions,
    context: Context = None,
    best: Best = 1,
    empty: Empty = "refused",
    settings: flags.Settings = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Answer questions about a text: from its words, or in words of the model's own.

    A model with a head of spans (BertForQuestionAnswering and the like) finds the
    answer in the text; any other that gives next tokens writes one, as the
    options below say. Without --context, each line of --input is an object with
    "question" and "context".

    For example:
        jaxgen answer downloads/bert-squad "Who wrote it?" --context @book.txt
        jaxgen answer downloads/flan-t5 --input questions.jsonl --output answers.jsonl
    """
    generation = flags.settings_of(settings)
    if generation.top_logprobs is not None:
        raise ConfigError(
            f"--top-logprobs={generation.top_logprobs} has no effect on answers; drop it"
        )
    if context is None:
        if question:
            raise ConfigError("--context is missing: the text that the questions are about")
        rows = [row for _, row in inputs.objects(job.input or "-", ("question", "context"))]
    else:
        (about,) = inputs.prompts([context], "--context")
        rows = [{"question": q, "context": about} for q in inputs.texts(question, job.input)]

    def work(model, wanted, progress):
        answers = tasks.answer(
            model,
            [str(row["question"]) for row in wanted],
            [str(row["context"]) for row in wanted],
            best=best,
            empty=empty,
            settings=generation,
            batch=job.batch,
            progress=progress,
        )
        return [[one._asdict() for one in row] for row in answers]

    texts.run(run, rows, job, work, _show, generation)


def _show(answers: list[dict]) -> str:
    def line(answer: dict) -> str:
        text = re.sub(r"[ \t\r\n]+", " ", answer["text"]).strip(" ")
        return text if answer["score"] is None else f"{text}\t{answer['score']:.4f}"

    return "\t".join(map(line, answers)) or "(no answer)"

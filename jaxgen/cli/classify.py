"""`jaxgen classify`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import inputs, texts
from jaxgen.errors import ConfigError
from jaxgen.text import tasks


def classify(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    pairs: Annotated[
        bool, Parameter(help="each text is two, parted by a tab: a premise and a claim, say")
    ] = False,
    job: texts.Given = texts.JOB,
) -> None:
    """Tell the class of each text, with its probability.

    For example:
        jaxgen classify runs/classify "What a wonderful film."
        jaxgen classify runs/classify --input reviews.txt --output classes.jsonl
    """
    wanted = inputs.texts(text, job.input)
    if pairs:
        if odd := next((one for one in wanted if one.count("\t") != 1), None):
            raise ConfigError(f"--pairs: {odd[:40]!r} has not one tab between its two texts")
        wanted = [tuple(one.split("\t")) for one in wanted]

    def work(model, wanted, progress):
        return tasks.classify(
            model, wanted, batch=job.batch, overflow=job.overflow, progress=progress
        )

    texts.run(run, wanted, job, work, lambda best: f"{best[0][0]}\t{best[0][1]:.4f}")

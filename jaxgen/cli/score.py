"""`jaxgen score`."""

from __future__ import annotations

from jaxgen.cli import inputs, texts
from jaxgen.text import tasks


def score(run: texts.Folder, /, *text: texts.Texts, job: texts.Read = texts.READ_JOB) -> None:
    """Print the log-probability (nats) of each text, and how many tokens it has.

    A line a text: the log-probability, a tab, the number of tokens that it is the
    sum of. A .jsonl file has the two as a list.

    For example:
        jaxgen score runs/quickstart "Return True if the"
    """

    def work(model, wanted, progress):
        return tasks.score(model, wanted, batch=job.batch, overflow=job.overflow, progress=progress)

    def show(scored):
        return f"{scored[0]:.4f}\t{scored[1]}"

    texts.run(run, inputs.texts(text, job.input), job, work, show)

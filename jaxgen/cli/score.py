"""`jaxgen score`."""

from __future__ import annotations

from jaxgen.cli import texts


def score(run: texts.Folder, /, *text: texts.Texts, job: texts.Given = texts.JOB) -> None:
    """Print the log-probability (nats) of each text, and how many tokens it has.

    For example:
        jaxgen score runs/quickstart "Return True if the"
    """

    def work(model, wanted, progress):
        from jaxgen.text import tasks

        return tasks.score(model, wanted, batch=job.batch, overflow=job.overflow, progress=progress)

    wanted = texts.gather(text, job.input)
    texts.run(run, wanted, job, work, lambda found: f"{found[0]:.4f}\t{found[1]}")

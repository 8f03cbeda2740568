"""`jaxgen classify`."""

from __future__ import annotations

from jaxgen.cli import texts


def classify(run: texts.Folder, /, *text: texts.Texts, job: texts.Given = texts.JOB) -> None:
    """Tell the class of each text, with its probability.

    For example:
        jaxgen classify runs/classify "What a wonderful film."
        jaxgen classify runs/classify --input reviews.txt --output classes.jsonl
    """

    def work(model, wanted, progress):
        from jaxgen.text import tasks

        return tasks.classify(
            model, wanted, batch=job.batch, overflow=job.overflow, progress=progress
        )

    wanted = texts.gather(text, job.input)
    texts.run(run, wanted, job, work, lambda found: f"{found[0][0]}\t{found[0][1]:.4f}")

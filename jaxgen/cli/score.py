"""`jaxgen score`."""

from __future__ import annotations

from jaxgen.cli import texts


def score(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    input: texts.Input = None,
    output: texts.Output = None,
    batch: texts.Batch = 32,
) -> None:
    """Print the log-probability (nats) of each text, and how many tokens it has.

    For example:
        jaxgen score runs/quickstart "Return True if the"
    """

    def work(model, wanted):
        from jaxgen.text import tasks

        return tasks.score(model, wanted, batch=batch)

    texts.run(run, text, input, output, work, lambda found: f"{found[0]:.4f}\t{found[1]}")

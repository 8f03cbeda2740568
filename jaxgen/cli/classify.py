"""`jaxgen classify`."""

from __future__ import annotations

from jaxgen.cli import texts


def classify(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    input: texts.Input = None,
    output: texts.Output = None,
    batch: texts.Batch = 32,
) -> None:
    """Tell the class of each text, with its probability.

    For example:
        jaxgen classify runs/classify "What a wonderful film."
        jaxgen classify runs/classify --input reviews.txt --output classes.jsonl
    """

    def work(model, wanted):
        from jaxgen.text import tasks

        return tasks.classify(model, wanted, batch=batch)

    texts.run(run, text, input, output, work, lambda found: f"{found[0][0]}\t{found[0][1]:.4f}")

"""`jaxgen embed`."""

from __future__ import annotations

from jaxgen.cli import texts


def embed(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    input: texts.Input = None,
    output: texts.Output = None,
    batch: texts.Batch = 32,
) -> None:
    """Print a vector for each text: the mean of its last hidden states.

    For example:
        jaxgen embed runs/bert_mlm --input texts.txt --output vectors.jsonl
    """

    def work(model, wanted):
        from jaxgen.text import tasks

        return tasks.embed(model, wanted, batch=batch).tolist()

    texts.run(run, text, input, output, work, lambda row: " ".join(f"{x:.6g}" for x in row))

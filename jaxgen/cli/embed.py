"""`jaxgen embed`."""

from __future__ import annotations

from jaxgen.cli import inputs, texts
from jaxgen.text import tasks


def embed(run: texts.Folder, /, *text: texts.Texts, job: texts.Read = texts.READ_JOB) -> None:
    """Print a vector for each text: the mean of its last hidden states.

    A folder of sentence-transformers may say otherwise: its pooling,
    dense layers, normalisation, prompt and length are followed.

    For example:
        jaxgen embed runs/bert_mlm --input texts.txt --output vectors.jsonl
    """

    def work(model, wanted, progress):
        vectors = tasks.embed(
            model, wanted, batch=job.batch, overflow=job.overflow, progress=progress
        )
        return vectors.tolist()

    def show(vector):
        return " ".join(f"{x:.6g}" for x in vector)

    texts.run(run, inputs.texts(text, job.input), job, work, show)

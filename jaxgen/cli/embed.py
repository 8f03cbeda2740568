"""`jaxgen embed`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import inputs, texts
from jaxgen.text import tasks

Prompt = Annotated[
    str | None,
    Parameter(help="put this prompt of the folder before each text, as query or document"),
]


def embed(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    prompt_name: Prompt = None,
    job: texts.Read = texts.READ_JOB,
) -> None:
    """Print a vector for each text: the mean of its last hidden states.

    A folder of sentence-transformers may say otherwise: its pooling,
    dense layers, normalisation, prompts and length are followed.

    For example:
        jaxgen embed runs/bert_mlm --input texts.txt --output vectors.jsonl
        jaxgen embed intfloat/e5-small-v2 "query: how old are trees" --output q.jsonl
        jaxgen embed models/minilm --prompt-name query "how old are trees"
    """

    def work(model, wanted, progress):
        vectors = tasks.embed(
            *(model, wanted),
            prompt_name=prompt_name,
            batch=job.batch,
            overflow=job.overflow,
            progress=progress,
        )
        return vectors.tolist()

    def show(vector):
        return " ".join(f"{x:.6g}" for x in vector)

    texts.run(run, inputs.texts(text, job.input), job, work, show)

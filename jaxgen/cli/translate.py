"""`jaxgen translate` and `jaxgen summarize`: text from text with an encoder-decoder."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import texts
from jaxgen.cli.arguments import REAL, WHOLE

Beams = Annotated[
    int | None,
    WHOLE,
    Parameter(help="beams of the search; 1 is greedy; else as the folder says, or 5"),
]
Penalty = Annotated[
    float | None,
    REAL,
    Parameter(help="above 0 favours long texts; else as the folder says, or 1"),
]
Length = Annotated[int | None, WHOLE, Parameter(help="at most so many new tokens")]


def translate(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    beams: Beams = None,
    length_penalty: Penalty = None,
    max_new_tokens: Length = None,
    job: texts.Given = texts.JOB,
) -> None:
    """Translate texts, or write what else an encoder-decoder has learned to.

    One text a line in, one a line out. Texts of about one length share a batch;
    a text's result does not depend on the others. What a folder's
    generation_config.json asks for holds, unless an option says otherwise.

    For example:
        jaxgen translate runs/translate "A dog runs through the snow."
        jaxgen translate runs/translate --input test.en --output test.de
        jaxgen summarize runs/summarize_docstrings --input functions.txt
    """
    if beams is not None and beams < 1:
        raise texts.ConfigError(f"--beams={beams} must be at least 1")

    def work(model, wanted, progress):
        from jaxgen.text import follow, tasks

        return tasks.rewrite(
            model,
            wanted,
            length=max_new_tokens,
            search=follow.search(model.generation_config, count=beams, penalty=length_penalty),
            batch=job.batch,
            overflow=job.overflow,
            progress=progress,
        )

    texts.run(run, texts.gather(text, job.input), job, work, str, search=True)

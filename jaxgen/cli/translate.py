"""`jaxgen translate` and `jaxgen summarize`: text from text with an encoder-decoder."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import texts
from jaxgen.cli.arguments import REAL, WHOLE

Beams = Annotated[int, WHOLE, Parameter(help="beams of the search; 1 is greedy")]
Penalty = Annotated[float, REAL, Parameter(help="above 0 favours long texts")]
Length = Annotated[int | None, WHOLE, Parameter(help="at most so many new tokens")]


def translate(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    input: texts.Input = None,
    output: texts.Output = None,
    beams: Beams = 5,
    length_penalty: Penalty = 1.0,
    max_new_tokens: Length = None,
    batch: texts.Batch = 32,
) -> None:
    """Translate texts, or write what else an encoder-decoder has learned to.

    One text a line in, one a line out. Texts of about one length share a batch;
    a text's result does not depend on the others.

    For example:
        jaxgen translate runs/translate "A dog runs through the snow."
        jaxgen translate runs/translate --input test.en --output test.de
        jaxgen summarize runs/summarize_docstrings --input functions.txt
    """

    def work(model, wanted):
        from jaxgen.decoding.search import beams as kept
        from jaxgen.run.progress import bar
        from jaxgen.text import tasks

        search = kept(beams, length_penalty=length_penalty)
        with bar(f"{len(wanted)} texts") as progress:
            return tasks.rewrite(
                model, wanted, length=max_new_tokens, search=search, batch=batch, progress=progress
            )

    texts.run(run, text, input, output, work, str)

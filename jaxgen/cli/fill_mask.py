"""`jaxgen fill-mask`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import texts
from jaxgen.cli.arguments import WHOLE


def fill_mask(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    input: texts.Input = None,
    output: texts.Output = None,
    best: Annotated[int, WHOLE, Parameter(help="pieces for each mask")] = 5,
    batch: texts.Batch = 32,
) -> None:
    """Print the likeliest pieces for each <mask> of each text.

    For example:
        jaxgen fill-mask runs/bert_mlm "Return the<mask> of the list."
    """

    def work(model, wanted):
        from jaxgen.text import tasks

        return tasks.fill_mask(model, wanted, best=best, batch=batch)

    def show(found):
        return "\t".join(" ".join(f"{p!r} {chance:.3f}" for p, chance in mask) for mask in found)

    texts.run(run, text, input, output, work, show)

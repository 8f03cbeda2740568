"""`jaxgen fill-mask`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import inputs, texts
from jaxgen.cli.arguments import at_least
from jaxgen.errors import ConfigError
from jaxgen.text import tasks


def fill_mask(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    best: Annotated[int, at_least(1), Parameter(help="pieces for each mask")] = 5,
    job: texts.Read = texts.READ_JOB,
) -> None:
    """Print the likeliest pieces for each <mask> of each text.

    For example:
        jaxgen fill-mask runs/bert_mlm "Return the<mask> of the list."
    """
    if job.overflow != "refuse":
        raise ConfigError("--overflow cut has no effect: a mask may lie in what is cut off")

    def work(model, wanted, progress):
        return tasks.fill_mask(model, wanted, best=best, batch=job.batch, progress=progress)

    def show(masks):
        return "\t".join(" ".join(f"{p!r} {chance:.3f}" for p, chance in mask) for mask in masks)

    texts.run(run, inputs.texts(text, job.input), job, work, show)

"""`jaxgen eval`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import arguments, exits, paths, start
from jaxgen.cli.arguments import Overrides, Step


def evaluate(
    run: Annotated[str, Parameter(help="a run folder, or its name in runs/")],
    /,
    *overrides: Overrides,
    split: Annotated[
        Literal["valid", "test", "train"], Parameter(help="the documents to measure on")
    ] = "valid",
    step: Step = None,
) -> None:
    """Print loss, perplexity and bits per byte of a run.

    All of a split is read: of the run's own text, which data.files=[...] finds
    where it has moved, or of other text that is given in that way. Bits per
    byte compare models with different tokenizers; less is better. Nothing is
    written but the cache of token shards.

    For example:
        jaxgen eval runs/quickstart
        jaxgen eval quickstart --split test --step best
        jaxgen eval runs/my data.files=[elsewhere/mine.txt]
    """
    arguments.check_overrides(overrides)
    (folder, which), cache = paths.model(run, step), paths.cache()
    start.prepare_jax(cache)
    from jaxgen import run as runs

    with exits.in_folder(folder):
        rows = runs.evaluate(folder, overrides, split=split, cache=cache, step=which)
        terminal.print_rows(rows)

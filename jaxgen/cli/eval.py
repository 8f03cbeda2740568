"""`jaxgen eval`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen.cli import arguments, exits, paths, start


def evaluate(
    run: Annotated[str, Parameter(help="a run folder, or its name in runs/")],
    /,
    *,
    split: Annotated[
        Literal["valid", "test", "train"], Parameter(help="the documents to measure on")
    ] = "valid",
) -> None:
    """Print loss, perplexity and bits per byte of a run.

    All of a split is read. Bits per byte compare models with different
    tokenizers; less is better. Nothing is written but the cache of token shards.

    For example:
        jaxgen eval runs/quickstart
        jaxgen eval quickstart --split test
    """
    folder, cache = paths.run_folder(run), paths.cache()
    start.prepare_jax(cache)
    from jaxgen import run as runs

    with exits.in_folder(folder):
        arguments.print_rows(runs.evaluate(folder, split=split, cache=cache))

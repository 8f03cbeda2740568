"""`jaxgen eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import arguments, exits, paths, start
from jaxgen.cli.arguments import Adapters, Overrides, Step


def evaluate(
    run: Annotated[str, Parameter(help="a run, its name in runs/, or any model's folder")],
    /,
    *overrides: Overrides,
    split: Annotated[
        Literal["valid", "test", "train"] | None,
        Parameter(help="the documents to measure on; by default valid, or all of other text"),
    ] = None,
    stride: Annotated[
        int | None,
        arguments.at_least(1),
        Parameter(help="tokens from one window to the next, which then overlap; by default none"),
    ] = None,
    knn: Annotated[
        str | None,
        Parameter(
            help="a folder for the hidden states of the training text, made if need be: also "
            "measure kNN-LM, weighed on valid"
        ),
    ] = None,
    step: Step = None,
    adapter: Adapters = (),
) -> None:
    """Print loss, perplexity and bits per byte of a model.

    Of a classifier its accuracy, of a run of preferences how often it prefers the
    chosen text, of a policy its rewards.

    All of a split is read of the run's own text, which data.files=... finds where
    it has moved; of other text that is given in that way, all. Bits per byte
    compare models with different tokenizers; less is better. With --stride each
    token is predicted from most of the context, in more time. Nothing is written
    but the cache of token shards.

    For example:
        jaxgen eval runs/quickstart
        jaxgen eval quickstart --split test --step best
        jaxgen eval runs/my data.files=other.txt --stride 64
        jaxgen eval models/gpt2 data.files=mine.txt
        jaxgen eval runs/my --split test --knn runs/my/states
    """
    arguments.check_overrides(overrides, text=True)
    (folder, which, adapters), cache = paths.adapted(run, step, adapter), paths.cache()
    start.prepare_jax(cache)
    from jaxgen import run as runs

    with exits.in_folder(folder):
        more = {"split": split, "stride": stride, "step": which, "adapter": adapters}
        more["knn"] = None if knn is None else Path(knn)
        rows = runs.evaluate(folder, overrides, cache=cache, **more)
        terminal.print_rows(rows)

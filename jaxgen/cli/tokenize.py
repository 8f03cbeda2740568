"""`jaxgen tokenize`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import arguments, paths, start
from jaxgen.cli.arguments import Overrides


def tokenize(
    config: Annotated[str, Parameter(help="a .yaml file, or its name in configs/")],
    /,
    *overrides: Overrides,
) -> None:
    """Prepare the text of a config: train its tokenizer, write its token shards.

    `jaxgen train` does this by itself; do it beforehand to look at a corpus.
    Facts about it are printed. Shards are kept in the cache, by the digests of
    the text and of the tokenizer.

    For example:
        jaxgen tokenize quickstart
        jaxgen tokenize my.yaml tokenizer.vocab_size=8192
    """
    arguments.check_overrides(overrides)
    path, cache = paths.config(config), paths.cache()
    from jaxgen import run

    settings = run.read_settings(path, overrides)
    start.prepare_jax(cache)
    terminal.print_rows(run.tokenize(settings, cache=cache))

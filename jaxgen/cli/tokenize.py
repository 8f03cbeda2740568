"""`jaxgen tokenize`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import arguments, paths, start
from jaxgen.cli.arguments import Overrides, at_least
from jaxgen.errors import ConfigError


def tokenize(
    config: Annotated[str, Parameter(help="a .yaml file, or its name in configs/")],
    /,
    *overrides: Overrides,
    part: Annotated[
        int | None, at_least(0), Parameter(help="prepare this part alone, from 0 up; with --of")
    ] = None,
    of: Annotated[int | None, at_least(1), Parameter(help="parts that the text has")] = None,
    join: Annotated[
        bool, Parameter(help="join the parts that --of counts, which are all made")
    ] = False,
    tokenizer_to: Annotated[
        str | None, Parameter(help="a new folder, in which to keep the tokenizer")
    ] = None,
) -> None:
    """Prepare the text of a config: train its tokenizer, write its token shards.

    `jaxgen train` does this by itself; do it beforehand to look at a corpus, or to
    prepare much text on many machines. Facts about it are printed. Shards are kept
    in the cache, by the digests of the text and of the tokenizer.

    A part is some of the files. Parts are made in any order, by any machines that
    share the cache (JAXGEN_CACHE=/shared/cache, or gs://BUCKET/cache); one that is
    made is skipped, one that was killed is made again. Joined, they stay where they
    are, and `jaxgen train` finds them. They need a tokenizer that is made already,
    and data.split=hash.

    For example:
        jaxgen tokenize quickstart
        jaxgen tokenize my.yaml tokenizer.vocab_size=8192 --tokenizer-to tok
        jaxgen tokenize my.yaml --part $SLURM_ARRAY_TASK_ID --of 1000
        jaxgen tokenize my.yaml --join --of 1000
    """
    arguments.check_overrides(overrides)
    if (part is not None or join) != (of is not None) or (part is not None and join):
        raise ConfigError("--of goes with one of --part and --join, as in --part 0 --of 8")
    if part is not None and tokenizer_to is not None:
        raise ConfigError("--tokenizer-to has no effect with --part, which makes no tokenizer")
    path, cache = paths.config(config), paths.cache()
    from jaxgen import data, run

    settings = run.read_settings(path, overrides)
    start.prepare_jax(cache)
    if part is not None and of is not None:
        rows = run.tokenize_part(settings, data.Part(part, of), cache=cache)
    else:
        to = None if tokenizer_to is None else files.to_path(tokenizer_to)
        rows = run.tokenize(settings, cache=cache, joined=of, tokenizer_to=to)
    terminal.print_rows(rows)

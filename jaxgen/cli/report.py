"""`jaxgen report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import REAL, WHOLE
from jaxgen.errors import ConfigError

Runs = Annotated[
    str, Parameter(help="run folders of one corpus and tokenizer, or their names in runs/")
]
Baselines = Annotated[
    str,
    Parameter(help="trained on the spot, with commas: ngram, hmm, template, maxent, vae; none: ''"),
]
Split = Annotated[Literal["valid", "test"], Parameter(help="the documents to measure on")]
Count = Annotated[int, WHOLE, Parameter(help="beginnings of held-out text to go on from")]
Width = Annotated[int, WHOLE, Parameter(help="tokens of a beginning")]
Length = Annotated[int, WHOLE, Parameter(help="tokens to make after each")]
Seeds = Annotated[int, WHOLE, Parameter(help="how often each is gone on from")]
Temperature = Annotated[float, REAL, Parameter(help="of all generators")]
Judge = Annotated[
    str | None,
    Parameter(help="model whose vectors MAUVE and similarity compare; the first run by default"),
]
Out = Annotated[str | None, Parameter(help="folder to write; the first run's report/ by default")]


def report(
    *runs: Runs,
    baselines: Baselines = "ngram,hmm,template",
    split: Split = "valid",
    prompts: Count = 16,
    prompt_tokens: Width = 16,
    max_new_tokens: Length = 48,
    seeds: Seeds = 3,
    temperature: Temperature = 0.8,
    judge: Judge = None,
    out: Out = None,
) -> None:
    """Compare runs and traditional generators: quality, diversity, stability, speed.

    Baselines learn from the training text of the first run; all are measured on
    the same held-out text, from the same beginnings. Prints a table; writes
    report.json and report.html, a page that needs no network. BLEU, chrF, TER,
    ROUGE and METEOR need pip install "jaxgen[eval]".

    For example:
        jaxgen report quickstart
        jaxgen report runs/a runs/b --baselines ngram --split test --out compared
    """
    if not runs:
        raise ConfigError("no run is given; name at least one, as in `jaxgen report quickstart`")
    _check(prompts, prompt_tokens, max_new_tokens, seeds, temperature)
    folders = [paths.run_folder(word) for word in runs]
    kinds = [word.strip() for word in baselines.split(",") if word.strip()]
    cache = paths.cache()
    start.prepare_jax(cache)
    from rich.console import Console

    from jaxgen.report import make, table
    from jaxgen.report.collect import Plan

    plan = Plan(
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        new_tokens=max_new_tokens,
        seeds=seeds,
        temperature=temperature,
    )
    with exits.in_folder(folders[0]):
        found = make.make(
            folders,
            kinds,
            split=split,
            plan=plan,
            cache=cache,
            judge=Path(judge) if judge else None,
            say=lambda line: print(line, file=sys.stderr),
        )
        table.show_all(found, Console(width=None if sys.stdout.isatty() else 160))
        written = make.write(found, Path(out) if out else folders[0] / "report")
    for path in written:
        print(f"wrote {path}")


def _check(
    prompts: int, prompt_tokens: int, max_new_tokens: int, seeds: int, temperature: float
) -> None:
    """Raise ConfigError for a number that nothing can be measured with."""
    sizes = {"prompts": prompts, "prompt-tokens": prompt_tokens, "seeds": seeds}
    least = {**dict.fromkeys(sizes, 1), "prompt-tokens": 2, "max-new-tokens": 2}
    for name, value in {**sizes, "max-new-tokens": max_new_tokens}.items():
        if value < least[name]:
            raise ConfigError(f"--{name}={value} must be at least {least[name]}")
    if temperature < 0:
        raise ConfigError(f"--temperature={temperature} must be 0 (greedy) or more")

"""`jaxgen report`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import REAL, at_least
from jaxgen.errors import ConfigError

Runs = Annotated[
    str, Parameter(help="run folders of one corpus and tokenizer, or their names in runs/")
]
Baselines = Annotated[
    str,
    Parameter(help="trained on the spot, with commas: ngram, hmm, template, maxent, vae; none: ''"),
]
Split = Annotated[Literal["valid", "test"], Parameter(help="the documents to measure on")]
Count = Annotated[int, at_least(1), Parameter(help="beginnings of held-out text to go on from")]
Width = Annotated[int, at_least(2), Parameter(help="tokens of a beginning")]
Length = Annotated[int, at_least(2), Parameter(help="tokens to make after each")]
Seeds = Annotated[int, at_least(1), Parameter(help="how often each is gone on from")]
Temperature = Annotated[float, REAL, Parameter(help="of all generators")]
Judge = Annotated[
    str | None,
    Parameter(help="model whose vectors MAUVE and similarity compare; the first run by default"),
]
Out = Annotated[
    str | None,
    Parameter(help="folder to write; the first run's report/, or that of --from, by default"),
]
From = Annotated[
    str | None,
    Parameter(name="--from", help="a report.json, to print and write again without measuring"),
]


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
    source: From = None,
) -> None:
    """Compare runs and traditional generators: quality, diversity, stability, speed.

    Baselines learn from the training text of the first run; all are measured on
    the same held-out text, from the same beginnings. Prints tables; writes
    report.json and report.html, a page that needs no network. BLEU, chrF, TER,
    ROUGE, METEOR and self-BLEU are left out without pip install "jaxgen[eval]".

    For example:
        jaxgen report quickstart
        jaxgen report runs/a runs/b --baselines ngram --split test --out compared
        jaxgen report --from compared/report.json
    """
    given = locals()
    if source is not None:
        _again(files.to_path(source), out, [*runs, *_changed(given)])
        return
    if not runs:
        raise ConfigError("no run is given; name at least one, as in `jaxgen report quickstart`")
    if temperature < 0:
        raise ConfigError(f"--temperature={temperature} must be 0 (greedy) or more")
    folders = [paths.run_folder(word) for word in runs]
    target = files.to_path(out) if out else folders[0] / "report"
    kinds = [word.strip() for word in baselines.split(",") if word.strip()]
    cache = paths.cache()
    start.prepare_jax(cache)
    from jaxgen.report import make
    from jaxgen.report.collect import Plan

    plan = Plan(
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        new_tokens=max_new_tokens,
        seeds=seeds,
        temperature=temperature,
    )
    with exits.in_folder(folders[0]):
        figures = make.make_report(
            folders,
            kinds,
            split=split,
            plan=plan,
            cache=cache,
            judge=files.to_path(judge) if judge else None,
            say=lambda line: print(line, file=sys.stderr),
        )
        _deliver(figures, target)


def _changed(arguments: dict[str, Any]) -> list[str]:
    """Return the options of a measurement that differ from their defaults."""
    options = inspect.signature(report).parameters.keys() - {"runs", "out", "source"}
    defaults = {name: inspect.signature(report).parameters[name].default for name in options}
    return sorted(f"--{k.replace('_', '-')}" for k in options if arguments[k] != defaults[k])


def _again(source: Path, out: str | None, unused: list[str]) -> None:
    if unused:
        raise ConfigError(f"--from {source} measures nothing; leave out {' '.join(unused)}")
    from jaxgen.report import make

    path = source / "report.json" if source.is_dir() else source
    _deliver(make.read_report(path), files.to_path(out) if out else path.parent)


def _deliver(figures: dict[str, Any], folder: Path) -> None:
    from jaxgen.report import make, table

    table.show_all(figures, terminal.console())
    for path in make.write_report(figures, folder):
        print(f"wrote {path}")

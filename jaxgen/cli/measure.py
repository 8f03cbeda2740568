"""`jaxgen measure`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import inputs, start
from jaxgen.errors import ConfigError, DataError

Made = Annotated[str, Parameter(help="file of texts, one a line")]
References = Annotated[str | None, Parameter(help="file of what each should be, a line for a line")]
Judge = Annotated[str | None, Parameter(help="model whose vectors MAUVE and similarity compare")]
Output = Annotated[str | None, Parameter(help="write the figures there, as JSON")]
Figures = dict[str, Callable[[], Any]]  # name -> what computes its estimate


def measure(
    texts: Made,
    /,
    *,
    references: References = None,
    judge: Judge = None,
    output: Output = None,
) -> None:
    """Print how good and how varied texts are, each figure with its 95 % interval.

    Diversity and repetition of the texts alone; BLEU, chrF, TER, ROUGE, METEOR,
    exact match and F1 beside references; similarity and MAUVE with a judge. Words
    are what white space parts. What needs pip install "jaxgen[eval]" is left out
    without it.

    For example:
        jaxgen measure made.txt --references true.txt
    """
    if judge is not None and references is None:
        raise ConfigError(f"--judge {judge} compares texts with --references; give them too")
    lines = _lines(texts)
    if not any(line.strip() for line in lines):
        raise DataError(f"{texts} holds no text; write one a line")
    reference_lines = None if references is None else _lines(references)
    figures = _of_texts(lines)
    if reference_lines is not None:
        figures |= _beside(lines, reference_lines)
        if judge is not None:
            figures |= _judged(lines, reference_lines, Path(judge))
    from jaxgen.measure import quality
    from jaxgen.report.table import cell

    shown = {name: value._asdict() for name, value in quality.compute_installed(figures).items()}
    terminal.print_rows([(name, cell(value)) for name, value in shown.items()])
    if lacking := [name for name in figures if name not in shown]:
        print(f"left out: {', '.join(lacking)}; {quality.EXTRA} adds them")
    if output is not None:
        files.write_json(output, {"texts": len(lines), "figures": shown})


def _lines(path: str) -> list[str]:
    return files.lines(inputs.read_text(path, path, undecodable=DataError))


def _of_texts(lines: list[str]) -> Figures:
    from jaxgen.measure import diversity, stability

    words = [line.split() for line in lines]
    return {
        "distinct-1": lambda: diversity.distinct(words, 1, seed=0),
        "distinct-2": lambda: diversity.distinct(words, 2, seed=0),
        "self-BLEU": lambda: diversity.self_bleu(lines, seed=0),
        "entropy of pairs": lambda: diversity.entropy(words, 2, seed=0),
        "Zipf coefficient": lambda: diversity.zipf(words, seed=0),
        "words": lambda: diversity.length(words, seed=0),
        "rep-16": lambda: stability.rep(words, 16, seed=0),
        "seq-rep-4": lambda: stability.seq_rep(words, 4, seed=0),
        "loops": lambda: stability.loops(words, seed=0),
    }


def _beside(lines: list[str], references: list[str]) -> Figures:
    from jaxgen.measure import quality

    return {
        "BLEU": lambda: quality.overlap("bleu", lines, references, seed=0)[0],
        "chrF": lambda: quality.overlap("chrf", lines, references, seed=0)[0],
        "TER": lambda: quality.overlap("ter", lines, references, seed=0)[0],
        "ROUGE-1": lambda: quality.rouge("rouge1", lines, references, seed=0),
        "ROUGE-2": lambda: quality.rouge("rouge2", lines, references, seed=0),
        "ROUGE-L": lambda: quality.rouge("rougeL", lines, references, seed=0),
        "METEOR": lambda: quality.meteor(lines, references, seed=0),
        "exact match": lambda: quality.exact_match(lines, references, seed=0),
        "F1": lambda: quality.f1(lines, references, seed=0),
    }


def _judged(lines: list[str], references: list[str], judge: Path) -> Figures:
    from jaxgen.cli import paths
    from jaxgen.measure import mauve, quality

    start.prepare_jax(paths.cache())
    from jaxgen.text import tasks
    from jaxgen.text.loaded_model import open_model

    model = open_model(judge)
    pairs = [(a, b) for a, b in zip(lines, references, strict=True) if a.strip()]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    return {
        "similarity": lambda: quality.similarity(
            lambda texts: tasks.embed(model, texts), ours, theirs, seed=0
        ),
        "MAUVE": lambda: mauve.mauve(tasks.embed(model, ours), tasks.embed(model, theirs), seed=0),
    }

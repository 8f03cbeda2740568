"""Texts in, results out, for the verbs that do one thing with each of many texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import answers, exits, flags, paths, start
from jaxgen.cli.arguments import WHOLE, Step
from jaxgen.errors import ConfigError
from jaxgen.text.request import Generation

Folder = Annotated[str, Parameter(help="a run folder, its name in runs/, or a Hugging Face folder")]
Texts = Annotated[str, Parameter(help="a text; none: the lines of --input, or standard input")]
Overflow = Literal["refuse", "cut"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where texts come from and results go, and how many are worked on at once."""

    input: Annotated[
        str | None, Parameter(help="a file with a text a line; - is standard input")
    ] = None
    output: Annotated[
        str | None, Parameter(help="write there, a line a text; .jsonl gives objects")
    ] = None
    batch: Annotated[int, WHOLE, Parameter(help="texts at once")] = 32
    overflow: Annotated[
        Overflow, Parameter(help="a text longer than the context: refuse it, or cut its end")
    ] = "refuse"
    step: Step = None


Given = Annotated[Job, Parameter(name="*")]
JOB = Job()


def gather(texts: Sequence[str], source: str | None) -> list[str]:
    """Return the texts to work on; ConfigError if there are none, two sources or empty ones."""
    if texts and source is not None:
        raise ConfigError(f"--input {source} and {len(texts)} texts exclude each other; remove one")
    if not texts:
        where = "standard input" if source in (None, "-") else source
        raw = sys.stdin.buffer.read() if source in (None, "-") else _bytes(Path(str(source)))
        try:
            texts = files.lines(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where} is not UTF-8 at byte {error.start}; convert it") from None
        empty = next((n for n, text in enumerate(texts, 1) if not text.strip()), None)
        if empty or not texts:
            raise ConfigError(f"{where} has no text in line {empty or 1}; write one a line")
    return list(texts)


def run(
    folder: str,
    wanted: Sequence[Any],
    job: Job,
    work: Callable[[Any, Sequence[Any], Callable[[int, int], None]], list[Any]],
    show: Callable[[Any], str],
    settings: Generation | None = None,
) -> None:
    """Open the model, do the work on all inputs, and print or write a line for each result.

    work: (model, inputs, progress) -> results. settings: of what is generated; what the folder
    adds to them is told.
    """
    home, step = paths.model(folder, job.step)
    target = None if job.output is None else Path(job.output)
    if target is not None and (target.is_dir() or not target.resolve().parent.is_dir()):
        raise ConfigError(f"--output {job.output} is no file that can be written; name another")
    start.prepare_jax(paths.cache())
    from jaxgen.run.progress import bar
    from jaxgen.text.loaded_model import open_model

    with exits.in_folder(home), flags.named():
        model = open_model(home, step=step)
        if settings is not None:
            tell_defaults(settings, model.generation_config)
        with bar(f"{len(wanted)} texts") as progress:
            found = work(model, wanted, progress)
    if target is None:
        print("\n".join(map(show, found)))
        return
    if target.suffix == ".jsonl":
        rows = zip(wanted, found, strict=True)
        lines = (
            json.dumps({"text": t, "result": r}, ensure_ascii=False, default=float) for t, r in rows
        )
    else:
        lines = map(show, found)
    files.write(target, "".join(line + "\n" for line in lines))
    print(f"wrote {target}", file=sys.stderr)


def generate(
    folder: str,
    wanted: Sequence[Any],
    job: Job,
    settings: Generation,
    work: Callable[[Any, Sequence[Any], Callable[[int, int], None], bool], list[Any]],
) -> None:
    """Run a task that generates: a line a text; several results of one are parted by tabs.

    work: (model, inputs, progress, detail) -> completions of each input. With --top-logprobs a
    line of --output .jsonl holds tokens and their log-probabilities.
    """
    detail = settings.top_logprobs is not None
    if detail and not str(job.output).endswith(".jsonl"):
        raise ConfigError(
            f"--top-logprobs={settings.top_logprobs} has no effect without --output FILE.jsonl"
        )

    def results(model, wanted, progress):
        spell = answers.speller(model.tokenizer)
        rows = [
            [answers.describe(one, spell) if detail else one.text for one in row]
            for row in work(model, wanted, progress, detail)
        ]
        return [row[0] if len(row) == 1 else row for row in rows]

    def show(found):
        return found if isinstance(found, str) else "\t".join(found)

    run(folder, wanted, job, results, show, settings)


def tell_defaults(settings: Generation, told: Any) -> None:
    """Say on standard error what a folder adds to the settings of a request."""
    from jaxgen.text import defaults

    if found := defaults.describe(settings, told):
        print(f"the folder says: {found}", file=sys.stderr)


def objects(name: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file (- is standard input); ConfigError without the keys."""
    found = []
    for number, line in enumerate(gather((), name), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name}:{number} is no JSON: {error}") from None
        if lost := [key for key in keys if not isinstance(row, dict) or key not in row]:
            raise ConfigError(f"{name}:{number} is no object with {' and '.join(lost)}")
        found.append(row)
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--input {path}: {error.strerror or error}") from None

"""Texts in, results out, for the verbs that do one thing with each of many texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, flags, outputs, paths, start
from jaxgen.cli.arguments import Adapters, Step, at_least
from jaxgen.errors import ConfigError, DataError
from jaxgen.text.request import Generation

if TYPE_CHECKING:
    from jaxgen.pretrained.generation_config import GenerationConfig
    from jaxgen.text.loaded_model import LoadedModel

Folder = Annotated[
    str,
    Parameter(
        help="a run, its name in runs/, a Hugging Face folder, a .gguf file, or ORG/NAME of the hub"
    ),
]
Texts = Annotated[str, Parameter(help="a text; none: the lines of --input, or standard input")]
Overflow = Literal["refuse", "cut"]
Newlines = Literal["escape", "refuse"]
Progress = Callable[[int, int], None]  # (texts done, of how many)
# A model -> (the model to work with, "key=value" of what the folder adds).
Prepare = Callable[["LoadedModel"], tuple["LoadedModel", list[str]]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where texts come from and results go, and how many are worked on at once."""

    input: Annotated[
        str | None, Parameter(help="a file with a text a line; - is standard input")
    ] = None
    output: Annotated[
        str | None, Parameter(help="write there, a line a text; .jsonl gives objects")
    ] = None
    batch: Annotated[int, at_least(1), Parameter(help="texts at once")] = 32
    newlines: Annotated[
        Newlines,
        Parameter(help="those in a result: written as \\n, or refused; .jsonl keeps them"),
    ] = "escape"
    step: Step = None
    adapter: Adapters = ()


@dataclass(frozen=True, kw_only=True)
class ReadJob(Job):
    """A `Job` of texts that are read, not generated, for which `Generation` has the same."""

    overflow: Annotated[
        Overflow, Parameter(help="a text longer than the context: refuse it, or cut its end")
    ] = "refuse"


Given = Annotated[Job, Parameter(name="*")]
Read = Annotated[ReadJob, Parameter(name="*")]
JOB, READ_JOB = Job(), ReadJob()


def plain(model: LoadedModel) -> tuple[LoadedModel, list[str]]:
    """Return the model as it is, and nothing to tell of it."""
    return model, []


def run(
    folder: str,
    inputs: Sequence[Any],
    job: Job,
    work: Callable[[LoadedModel, Sequence[Any], Progress], list[Any]],
    show: Callable[[Any], str],
    settings: Generation | None = None,
    prepare: Prepare = plain,
) -> None:
    """Open the model, do the work on all inputs, and print or write a line for each result.

    work: (model, inputs, progress) -> results. settings: those of a text that is generated; what
    the folder adds to them is printed on standard error, after what `prepare` says that it adds.
    """
    home, step, adapters = paths.adapted(folder, job.step, job.adapter)
    target = None if job.output is None else outputs.target(job.output)
    start.prepare_jax(paths.cache())
    from jaxgen.run.progress import bar
    from jaxgen.text.loaded_model import open_model

    with exits.in_folder(home), flags.named():
        model, notes = prepare(open_model(home, step=step, adapter=adapters))
        if settings is not None:
            tell_defaults(settings, model.generation_config, notes)
        with bar("1 text" if len(inputs) == 1 else f"{len(inputs)} texts") as progress:
            results = work(model, inputs, progress)
    if target is not None and target.suffix == ".jsonl":
        rows = zip(inputs, results, strict=True)
        lines = (
            json.dumps({"text": t, "result": r}, ensure_ascii=False, default=float) for t, r in rows
        )
    else:
        lines = one_each(map(show, results), job.newlines)
    if target is None:
        outputs.put(["\n".join(lines) + "\n"])
        return
    files.write(target, "".join(line + "\n" for line in lines))
    print(f"wrote {target}", file=sys.stderr)


def one_each(results: Iterable[str], newlines: Newlines) -> list[str]:
    """Return results without a newline, so that each is a line; DataError if they are refused."""
    lines = []
    for number, text in enumerate(results, 1):
        if newlines == "refuse" and ("\n" in text or "\r" in text):
            raise DataError(
                f"result {number} has a newline: {text[:60]!r}; write to --output FILE.jsonl, or "
                f"let it be escaped with --newlines escape"
            )
        lines.append(text.replace("\n", "\\n").replace("\r", "\\r"))
    return lines


def generate(
    folder: str,
    inputs: Sequence[Any],
    job: Job,
    settings: Generation,
    work: Callable[[LoadedModel, Sequence[Any], Progress, bool], list[Any]],
    prepare: Prepare = plain,
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

    def describe(model, inputs, progress):
        spell = outputs.speller(model.tokenizer)
        rows = [
            [outputs.describe(one, spell) if detail else one.text for one in row]
            for row in work(model, inputs, progress, detail)
        ]
        return [row[0] if len(row) == 1 else row for row in rows]

    def show(result):
        if isinstance(result, str):
            return result
        return "\t".join(text.replace("\t", "\\t") for text in result)

    run(folder, inputs, job, describe, show, settings, prepare)


def tell_defaults(
    settings: Generation, folder_config: GenerationConfig, more: Sequence[str] = ()
) -> None:
    """Say on standard error what a folder's config adds to the settings of a request, in a line."""
    from jaxgen.text import defaults

    added = [*more, *filter(None, [defaults.describe(settings, folder_config)])]
    if added:
        print(f"the folder says: {', '.join(added)}", file=sys.stderr)

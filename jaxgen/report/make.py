"""The report: runs and baselines on one text, as JSON, a table and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.audit.page import read_audit
from jaxgen.errors import ConfigError, DataError
from jaxgen.pretrained.model import load
from jaxgen.report import collect, generators, page
from jaxgen.report.collect import Plan, Text
from jaxgen.report.metrics import METRICS, SCHEMA
from jaxgen.run import facts, inputs
from jaxgen.run.folder import AUDIT, TOKENIZER, existing_settings
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train import goodput

FORMAT = 1
HELD_OUT = "held-out text"
Say = Callable[[str], None]


def make_report(
    runs: Sequence[Path],
    baselines: Sequence[str],
    *,
    split: str,
    plan: Plan,
    cache: Path,
    say: Say,
    judge: Path | None = None,
) -> dict[str, Any]:
    """Return the report on runs and baselines as JSON-able data, by `metrics.SCHEMA`.

    The corpus, split and tokenizer are those of the first run; baselines learn from its training
    split. judge: the folder of any model, whose vectors similarity and MAUVE compare; None: the
    first run. Raises ConfigError for runs of other texts, or what loading a model raises.
    """
    generators.check_baselines(baselines)
    say(f"reading {runs[0]}")
    judge = runs[0] if judge is None else judge
    text, digest = _text(runs[0], split, cache, judge)
    _check_fits(plan, text.context)
    prompts, true = collect.windows(text, plan)
    figures = {HELD_OUT: collect.measure_texts(true[None], true, text, plan, reference=True)}
    about = {HELD_OUT: {"about": "the true continuations", "parameters": None}}
    texts = {HELD_OUT: true}
    for make_one in _makers(runs, baselines, text, plan, digest, cache):
        one = make_one()
        say(f"measuring {one.name}: {one.about}")
        figures[one.name], texts[one.name] = collect.measure(one, text, plan, prompts, true)
        about[one.name] = {"about": one.about, "parameters": one.parameters}
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "settings": plan.as_json() | {"judge": judge.name},
        "text": {
            "digest": digest,
            "split": split,
            "tokens": len(text.held.tokens),
            "bytes": text.held.text_bytes,
            "documents": text.held.documents,
            "training_tokens": len(text.train.tokens),
        },
        "metrics": {m.key: m._asdict() for m in METRICS},
        "generators": {
            name: about[name] | {"metrics": {k: e._asdict() for k, e in estimates.items()}}
            for name, estimates in figures.items()
        },
        "samples": _samples(text, prompts, texts),
        "audits": [one for run in runs if (one := read_audit(run / AUDIT)) is not None],
        "environment": facts.environment(),
    }


def read_report(path: Path) -> dict[str, Any]:
    """Return the report in a report.json, as `make_report` returned it.

    Raises BusyError for a file that can't be read, DataError for one that holds no report of ours.
    """
    with files.refusals(path):
        raw = path.read_bytes()
    try:
        report = json.loads(raw)
        if report["format"] > FORMAT:
            raise DataError(f"{path} has format {report['format']}, which needs a newer jaxgen")
        report.setdefault("audits", [])  # before `jaxgen audit` there were none
        page.html(report)
        return {key: report[key] for key in ("format", "schema", *SCHEMA)}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no report.json of `jaxgen report` ({type(error).__name__}: {error})"
        ) from None


def write_report(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html into a folder, which is made; return their paths."""
    with files.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "report.json", report)
    files.write(folder / "report.html", page.html(report))
    return folder / "report.json", folder / "report.html"


def _text(folder: Path, split: str, cache: Path, judge: Path) -> tuple[Text, str]:
    settings = existing_settings(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    corpus = inputs.prepare(settings, tokenizer, cache, folder=folder)
    held = getattr(corpus, split)
    embed = partial(tasks.embed, open_model(judge))
    return Text(corpus.train, held, tokenizer, settings.model.context, embed), corpus.digest


def _check_fits(plan: Plan, context: int) -> None:
    if plan.prompt_tokens + plan.new_tokens > context:
        raise ConfigError(
            f"a prompt of {plan.prompt_tokens} and {plan.new_tokens} new tokens exceed "
            f"context={context}; ask for fewer with --max-new-tokens or --prompt-tokens"
        )


def _makers(runs, baselines, text: Text, plan: Plan, digest: str, cache: Path):
    """Return functions that make the generators, to hold one at a time in memory."""

    def from_run(folder: Path):
        def make_one():
            settings = existing_settings(folder)
            tokenizer = load_tokenizer(folder / TOKENIZER)
            if tokenizer.fingerprint != text.tokenizer.fingerprint:
                raise ConfigError(
                    f"{folder} has another tokenizer than {runs[0]}; report runs of one tokenizer"
                )
            if inputs.prepare(settings, tokenizer, cache, folder=folder).digest != digest:
                raise ConfigError(f"{folder} was trained on another text than {runs[0]}")
            model = generators.transformer(folder.name, *load(folder))
            if times := goodput.read_times(folder):
                about = f"{model.about}; {goodput.describe(goodput.spent(times))} of training"
                return replace(model, about=about)
            return model

        return make_one

    def from_baseline(kind: str):
        lesson = generators.Lesson(text.train, text.tokenizer, text.context, plan.seed)
        return lambda: generators.baseline(kind, lesson)

    return [*map(from_run, runs), *map(from_baseline, baselines)]


def _samples(text: Text, prompts: Any, texts: dict[str, Any]) -> list[dict[str, Any]]:
    decode = text.tokenizer.decode
    return [
        {
            "prompt": decode(prompt.tolist()),
            "texts": {name: decode(rows[i].tolist()) for name, rows in texts.items()},
        }
        for i, prompt in enumerate(prompts[:6])
    ]

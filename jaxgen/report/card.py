"""A model card: what a run's own files say of it, and what nobody has looked at yet.

Sections as Mitchell et al. (2019, "Model Cards for Model Reporting") have them, in the README.md of
the Hugging Face hub, whose front matter names licence and task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen import files, tree
from jaxgen.errors import ConfigError, nearest
from jaxgen.models import api
from jaxgen.pretrained.model import WEIGHTS
from jaxgen.report.metrics import METRICS
from jaxgen.run.folder import CARD, ENVIRONMENT, existing_settings
from jaxgen.run.settings import Settings
from jaxgen.train.log import decode

MARK = "<!-- written by `jaxgen card`; written anew each time -->"
TASKS = {"classes": "text-classification", "token_classes": "token-classification",
         "mlm": "fill-mask", "spans": "question-answering", "lm": "text-generation"}  # fmt: skip
LARGEST = 64 << 20  # bytes of a file that is read
CHECKLIST = {
    "data-licence": "the licences of the training text allow this use",
    "personal-data": "the training text was searched for personal data",
    "memorisation": "how much training text is written out verbatim was measured",
    "bias": "scores were compared between groups of people",
    "toxicity": "harmful output was measured, and what filters it",
    "misuse": "uses that would do harm were considered, and are ruled out",
    "affected": "those whom its output concerns were asked",
    "energy": "the energy of training was measured",
}


def make_card(
    folder: Path,
    *,
    licence: str | None = None,
    data_licence: str | None = None,
    reviewed: Mapping[str, str] | None = None,
) -> str:
    """Return the card of a run as Markdown, made of its files alone.

    Args:
        folder: of a run that has begun.
        licence: of the weights; None: the card says that it is not stated.
        data_licence: of the training text, likewise.
        reviewed: by items of CHECKLIST, who looked at it and what was found; the others are listed
            as not reviewed.

    Raises ConfigError for a folder that is no run, or an item that is none.
    """
    reviewed = dict(reviewed or {})
    for item, note in reviewed.items():
        if item not in CHECKLIST:
            hint = nearest(item, CHECKLIST) or f"; there are {', '.join(CHECKLIST)}"
            raise ConfigError(f"reviewed={item} is no item of the checklist{hint}")
        if not note.strip():
            raise ConfigError(f"reviewed={item} says nothing; say who looked, and what was found")
    for name, value in (("licence", licence), ("data_licence", data_licence)):
        if value is not None and not value.strip():
            raise ConfigError(f"{name} is empty; name it, as apache-2.0, or leave it out")
    settings = existing_settings(folder)
    if (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} is a model without the run that made it; give that run")
    parts = [
        _front(settings, licence),
        MARK,
        f"# {folder.resolve().name}\n\n{_about(settings)}",
        _section("Model", _model(settings)),
        _section("Training", _training(folder, settings)),
        _section("Data", _data(folder, settings, data_licence)),
        *([_section("Privacy", _privacy(folder))] if settings.train.privacy.on else []),
        _section("Measured", _measured(folder), ("figure", "value", "where from")),
        f"## Limits\n\n{_limits(settings)}",
        f"## Ethics checklist\n\n{_checklist(reviewed)}",
    ]
    return "\n\n".join(parts) + "\n"


def write_card(card: str, path: Path) -> None:
    """Write a card; ConfigError where another file than a card of ours would be lost."""
    if path.exists() and MARK not in path.read_text("utf-8", "replace"):
        raise ConfigError(f"{path} was not written by jaxgen card; move it, or give another --out")
    with files.refusals(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, card)


def _front(settings: Settings, licence: str | None) -> str:
    task = TASKS.get(settings.model.head, "feature-extraction")
    if settings.model.topology == "encoder_decoder" and task == "text-generation":
        task = "text2text-generation"
    lines = [f"license: {json.dumps(licence)}"] if licence else []
    return "\n".join(["---", *lines, "library_name: jaxgen", f"pipeline_tag: {task}", "---"])


def _about(settings: Settings) -> str:
    model = settings.model
    return (
        f"A {model.topology.replace('_', '-')} of {_parameters(settings):,} parameters, trained "
        f"with jaxgen (objective {settings.objective.name}). All figures below are from the run's "
        f"own files; what they do not say is named as unknown."
    )


def _parameters(settings: Settings) -> int:
    return tree.count(api.abstract(settings.model))


def _model(settings: Settings) -> list[tuple[str, ...]]:
    model = settings.model
    return [
        ("layers, width, heads", f"{model.layers}, {model.d_model}, {model.heads}"),
        ("context", f"{model.context} tokens"),
        ("vocabulary", f"{model.V:,} ids ({settings.tokenizer.kind} tokenizer)"),
        ("parameters", f"{_parameters(settings):,} ({model.param_dtype})"),
        ("initialised from", str(settings.init_from or "random weights")),
    ]


def _training(folder: Path, settings: Settings) -> list[tuple[str, ...]]:
    train, facts = settings.train, _json(folder / ENVIRONMENT)
    last = max(_records(folder), key=lambda record: record["step"], default=None)
    hours = "unknown" if last is None else f"{last['seconds'] / 3600:.2f} h"
    devices, versions = facts.get("devices", {}), facts.get("packages", {})
    return [
        ("steps", f"{0 if last is None else last['step']} of {train.steps}"),
        ("rows a step", f"{train.batch} of {settings.model.context} tokens at most"),
        (
            "optimizer",
            f"{train.optimizer}, learning rate {train.learning_rate:g}, seed {train.seed}",
        ),
        ("time", f"{hours} on {devices.get('count', '?')} x {devices.get('kind', 'unknown')}"),
        ("software", f"jaxgen {facts.get('jaxgen', '?')}, jax {versions.get('jax', '?')}"),
    ]


def _data(folder: Path, settings: Settings, licence: str | None) -> list[tuple[str, ...]]:
    own, digests = settings.data, _json(folder / ENVIRONMENT).get("digests", {})
    valid, test = own.fractions
    held = own.valid_files or (f"{valid:.1%} of it for validation, {test:.1%} for a last test",)
    return [
        ("text", own.corpus or ", ".join(own.files) or "unknown"),
        ("digest", digests.get("text", "unknown")),
        ("licence of the text", licence or "not stated"),
        ("held out", ", ".join(held)),
    ]


def _privacy(folder: Path) -> list[tuple[str, ...]]:
    """Return what the run has written of its mechanism and of what it has spent."""
    about = _json(folder / CARD) or {"epsilon": "unknown until the run has ended"}
    return [(name.replace("_", " "), str(value)) for name, value in about.items()]


def _measured(folder: Path) -> list[tuple[str, ...]]:
    """Return figures with the file that each is from."""
    rows: list[tuple[str, ...]] = []
    valid = [one for one in _records(folder) if one.get("kind") == "valid" and "loss" in one]
    for name, one in (
        ("last", valid[-1] if valid else None),
        ("best", min(valid, key=lambda one: one["loss"], default=None)),
    ):
        if one is not None:
            text = ", ".join(
                f"{key.replace('_', ' ')} {value:.4g}"
                for key, value in one.items()
                if isinstance(value, float) and key not in ("seconds", "tokens")
            )
            rows.append((f"validation, {name}: step {one['step']}", text, "metrics.jsonl"))
    report = _json(folder / "report" / "report.json")
    figures = report.get("generators", {}).get(folder.resolve().name, {}).get("metrics", {})
    for metric in METRICS:
        one = figures.get(metric.key, {})
        if one.get("value") is not None:
            between = "" if one["low"] is None else f" [{one['low']:.4g}, {one['high']:.4g}]"
            rows.append((metric.title, f"{one['value']:.4g}{between}", "report/report.json"))
    return rows or [("none", "train, or run `jaxgen report`", "")]


def _limits(settings: Settings) -> str:
    model, lines = settings.model, []
    if model.topology != "encoder" and model.head == "lm":
        lines.append("It writes what is likely, not what is true; nothing here measures facts.")
    if settings.objective.name == "causal":
        lines.append("It was not trained to follow instructions or to refuse any.")
    lines += [
        f"It reads {model.context} tokens at most; beyond them nothing was measured.",
        "Languages and subjects are those of the training text; on others it was not measured.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _checklist(reviewed: Mapping[str, str]) -> str:
    lines = [
        f"- [{'x' if item in reviewed else ' '}] **{item}**: {about}. "
        f"{_flat(reviewed[item]) if item in reviewed else 'Not reviewed.'}"
        for item, about in CHECKLIST.items()
    ]
    return "\n".join(lines)


def _section(
    title: str, rows: list[tuple[str, ...]], heads: tuple[str, ...] = ("what", "value")
) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    body = "\n".join(f"| {' | '.join(map(_flat, row))} |" for row in lines)
    return f"## {title}\n\n{body}"


def _flat(text: str) -> str:
    """Return a text as the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    with files.refusals(path):
        lines = path.read_bytes().splitlines(keepends=True)
    return [record for line in lines if (record := decode(line)) is not None]


def _json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one where there is none."""
    return files.read_json(path, "record of a run", LARGEST) if path.exists() else {}

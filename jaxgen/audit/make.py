"""The audit of a run: every attack on it, and what its accountant promises beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxgen import files
from jaxgen.audit import attacks
from jaxgen.audit.extraction import extract
from jaxgen.audit.page import JSON, STYLE, section
from jaxgen.audit.pool import Pool, draw_pool
from jaxgen.audit.shadows import check_shadows, score_shadows
from jaxgen.data.canaries import CanarySettings, canary_texts, other_texts, planted
from jaxgen.data.copies import index_copies
from jaxgen.errors import ConfigError
from jaxgen.html_page import document
from jaxgen.pretrained.model import load_step
from jaxgen.privacy import accountant
from jaxgen.run import inputs
from jaxgen.run.folder import AUDIT, TOKENIZER, existing_settings
from jaxgen.run.job import Run
from jaxgen.run.settings import Settings
from jaxgen.store.steps import Step
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.text.tasks.scoring import score_continuations
from jaxgen.tokens import load as load_tokenizer

FORMAT = 1
DELTA = 1e-5  # of the bound of a run that promises nothing
NO_CANARIES = "no secrets: the run has no canaries (data.canaries.number=0)"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How much an audit does.

    candidates: secrets that canaries are ranked among; members: pieces of training text, and of
    held-out text; shadows: models of LiRA; prefix, length: tokens of extraction; batch: texts at
    once.
    """

    candidates: int = 4096
    members: int = 256
    shadows: int = 0
    prefix: int = 16
    length: int = 32
    batch: int = 64
    seed: int = 0


def make_audit(
    folder: Path, settings: AuditSettings, *, cache: Path, say: Say, step: Step = None
) -> dict[str, Any]:
    """Return the audit of a run of plain text as JSON-able data; shadows lie in its audit/.

    Raises ConfigError for a run of another objective, or of a context that is too short.
    """
    own = existing_settings(folder)
    if own.objective.name != "causal":
        raise ConfigError(
            f"{folder} has objective.name={own.objective.name}; audit a run of causal"
        )
    check_shadows(own, settings.shadows)
    if settings.prefix + settings.length > own.model.context:
        raise ConfigError(
            f"--prefix={settings.prefix} and --length={settings.length} exceed model.context="
            f"{own.model.context}; give smaller ones"
        )
    corpus = inputs.prepare(own, load_tokenizer(folder / TOKENIZER), cache, folder=folder)
    model, number = open_model(folder, step=step), load_step(folder, step)[2]
    run = Run(own, folder, model.tokenizer, corpus)
    pool = draw_pool(run, model, settings.members, settings.seed)
    canaries = own.data.canaries
    secrets = canaries.number and f"{settings.candidates:,} secrets beside the run's canaries"
    say(f"scoring {len(pool.rows)} pieces of text, {secrets or NO_CANARIES}")
    scores = _canary_scores(model, canaries, settings)
    index = index_copies([corpus.train])
    ours, theirs = (
        [row for row, member in zip(pool.rows, pool.member, strict=True) if member == side]
        for side in (True, False)
    )
    lengths = {"prefix": settings.prefix, "length": settings.length}
    say("going on after beginnings of the training text, and of held-out text")
    return {
        "format": FORMAT,
        "run": folder.name,
        "step": number,
        "settings": asdict(settings),
        "canaries": asdict(canaries) | {"planted": int(planted(canaries).sum())},
        "exposure": scores and _exposure(run, number, *scores),
        "membership": _membership(run, model, pool, settings, cache, say),
        "extraction": {
            "training": extract(model, ours, index, **lengths),
            "held_out": extract(model, theirs, index, **lengths),
        },
        "epsilon": _epsilon(run, number, None if scores is None else scores[0]),
    }


def write_audit(data: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write audit.json and audit.html into a folder, which is made; return their paths."""
    with files.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / JSON, data)
    page = document("jaxgen audit", ["<h1>What the model tells of its training text</h1>",
                                     *section(data)], style=STYLE)  # fmt: skip
    files.write(folder / "audit.html", page)
    return folder / JSON, folder / "audit.html"


def _canary_scores(
    model: LoadedModel, canaries: CanarySettings, settings: AuditSettings
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the log-probabilities of the canaries and of other secrets; None without canaries."""
    if not canaries.number:
        return None
    texts = [*canary_texts(canaries), *other_texts(canaries, settings.candidates)]
    logps = _logps(model, [model.ids(text) for text in texts], settings.batch)
    return logps[: canaries.number], logps[canaries.number :]


def _logps(model: LoadedModel, rows: list[list[int]], batch: int) -> Float[np.ndarray, "N"]:
    """Return log p (nats) of each row after its first token."""
    found = score_continuations(model, [(row[:1], row[1:]) for row in rows], batch=batch)
    return np.asarray([logp for logp, _ in found])


def _exposure(run: Run, step: int, own: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    bits, inside = attacks.exposure(own, others), planted(run.settings.data.canaries)
    most = float(np.log2(len(others) + 1))
    return {
        "candidates": len(others),
        "most": most,
        "promised": _promised(run, step, most),
        "planted": attacks.summary(bits[inside]),
        "left_out": attacks.summary(bits[~inside]),
        "bits": {"planted": bits[inside].tolist(), "left_out": bits[~inside].tolist()},
    }


def _promised(run: Run, step: int, most: float) -> float | None:
    """Return the largest mean exposure (bits) that the accountant allows; None: no limit.

    A canary that the run has not seen has b bits or more with the chance 2^-b.
    """
    if run.budget is None or not _is_unit(run.settings):
        return None
    bits = np.linspace(0.0, most, 200)
    chances = accountant.largest_chance(run.budget.mechanism, step, 2.0**-bits)
    return float(np.trapezoid(chances, bits))


def _membership(
    run: Run, model: LoadedModel, pool: Pool, settings: AuditSettings, cache: Path, say: Say
) -> dict[str, Any]:
    """Return the attacks by loss, and by LiRA with shadows, on text and on canaries."""

    def mean_logp(model: LoadedModel) -> Float[np.ndarray, "N"]:
        logps = _logps(model, pool.rows, settings.batch)
        return logps / [len(row) - 1 for row in pool.rows]

    scores = {"loss": mean_logp(model)}
    if settings.shadows:
        say(f"training {settings.shadows} shadow models")
        more: Any = {"folder": run.folder / AUDIT, "cache": cache, "score": mean_logp}
        shadows = score_shadows(run.settings, run.folder, pool, settings.shadows, **more)
        scores["lira"] = attacks.likelihood_ratios(scores["loss"], *shadows)
    results = {}
    for kind, some in (("text", ~pool.canary), ("canaries", pool.canary)):
        sides = some & pool.member, some & ~pool.member
        results[kind] = {
            name: {
                key: value._asdict()
                for key, value in attacks.attack(*(values[side] for side in sides)).items()
            }
            for name, values in scores.items()
            if min(side.sum() for side in sides) > 1
        }
    return results


def why_no_bound(settings: Settings) -> str | None:
    """Return why canaries give no lower bound of epsilon; None if they do."""
    unit, canaries = settings.train.privacy.unit, settings.data.canaries
    if not canaries.number:
        return "the run has no canaries; train with data.canaries.number=100, for example"
    if canaries.rate != 0.5:
        return f"data.canaries.rate={canaries.rate} is no fair coin; 0.5 is"
    if not _is_unit(settings):
        return (
            f"a canary is not one unit of privacy (train.privacy.unit={unit}, "
            f"data.canaries.repeats={canaries.repeats})"
        )
    return None


def _is_unit(settings: Settings) -> bool:
    """Return whether all that is planted of a canary is one unit of privacy."""
    unit, canaries = settings.train.privacy.unit, settings.data.canaries
    return unit in ("user", "file") or (unit == "document" and canaries.repeats == 1)


def _epsilon(run: Run, step: int, scores: np.ndarray | None) -> dict[str, Any]:
    """Return the audit's lower bound of epsilon beside the accountant's upper one."""
    upper = None if run.budget is None else run.budget.spent(step)
    delta = run.settings.train.privacy.delta or DELTA
    result = {"upper": upper, "delta": delta, "confidence": attacks.LEVEL, "lower": None}
    reason = why_no_bound(run.settings)
    if scores is None or reason is not None:
        return result | {"why_no_bound": reason}
    bound = attacks.epsilon_bound(scores, planted(run.settings.data.canaries), delta)
    return result | {"lower": bound.epsilon, "guesses": bound.guesses, "right": bound.right}

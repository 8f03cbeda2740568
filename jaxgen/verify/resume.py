"""Whether a run that is killed and restored goes on as if nothing had been: shown step by step."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.errors import ConfigError
from jaxgen.mesh.settings import MeshSettings
from jaxgen.run import inputs
from jaxgen.run.folder import TOKENIZER
from jaxgen.run.job import Run
from jaxgen.run.preparing import with_steps_and_noise
from jaxgen.run.settings import Settings, resolve
from jaxgen.tokens import load as load_tokenizer
from jaxgen.verify import stage
from jaxgen.verify.stage import SAVED, Name, Row, Task

TOLERANCE = 1e-5  # relative, of the loss on another mesh: sums over devices round in another order

# Runs a stage of a folder and returns its rows; killed after the row for which `until` is true.
Launch = Callable[[Path, Name, Callable[[Row], bool] | None], list[Row]]


@dataclass(frozen=True)
class StepLine:
    """A line of the table: what a step did uninterrupted, and whether the others did the same."""

    step: int
    data: str
    rng: str
    loss: str
    state: str
    killed: str
    restored: str


@dataclass(frozen=True)
class Comparison:
    """`difference` names the first one in words; None: there is none, which is the proof."""

    steps: list[StepLine]
    saved: int
    difference: str | None


def resume(
    settings: Settings,
    *,
    source: Path | None,
    steps: int,
    mesh: MeshSettings | None,
    cache: Path,
    launch: Launch,
) -> Comparison:
    """Make `steps` steps twice, once in one go and once killed and restored, and compare them.

    Three processes, each with JAX of its own: one makes all steps; one is killed (kill -9) after
    the first step that follows its checkpoint; one restores that. source: the run whose newest
    checkpoint is the beginning, which is only read; None begins as a new run does. mesh: of the
    restored one, if another; then the state must be equal as restored, data and random keys
    always, and losses to 1e-5. launch: how a stage is run. Raises what the stages raise.
    """
    if steps < 2:
        raise ConfigError(
            f"--steps={steps} must be at least 2: one before the checkpoint, one after"
        )
    if source is None:
        tokenizer = inputs.make_tokenizer(settings)
    else:
        tokenizer = load_tokenizer(source / TOKENIZER)
    settings = resolve(settings, tokenizer)
    corpus = inputs.prepare(settings, tokenizer, cache)
    settings = with_steps_and_noise(Run(settings, cache, tokenizer, corpus))
    task = Task(
        cache=str(cache),
        source=None if source is None else str(source.absolute()),
        steps=steps,
        save=steps // 2,
        mesh=None if mesh is None else asdict(mesh),
    )
    with files.refusals(cache):
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(
            dir=cache, prefix="verify-", ignore_cleanup_errors=True
        )
    with scratch as name:
        folder = Path(name)
        stage.write_settings(folder, settings, tokenizer)
        task.write(folder)
        full = launch(folder, "whole", None)
        saved = full[0]["step"] + task.save
        killed = launch(folder, "killed", lambda row: row.get("step", -1) > saved)
        restored = launch(folder, "restored", None)
    same_mesh = mesh is None or mesh == settings.mesh
    return compare(full, killed, restored, saved=saved, same_mesh=same_mesh)


def compare(
    full: list[Row], killed: list[Row], restored: list[Row], *, saved: int, same_mesh: bool
) -> Comparison:
    """Return the table of the three stages, up to the first difference."""
    by_step = {row["step"]: row for row in full}
    before = {row["step"]: row for row in killed if SAVED not in row}
    after = {row["step"]: row for row in restored[1:]}
    lines = []
    for step, row in sorted(by_step.items()):
        marks, difference = {}, None
        for name, rows in (("killed", before), ("restored", after)):
            if step not in rows:
                marks[name] = ""
                continue
            exact = name == "killed" or same_mesh
            message = differs(row, rows[step], exact=exact)
            marks[name] = "differs" if message else _mark(row, rows[step], exact)
            if message and difference is None:
                difference = f"step {step}, the {name} process: {message}"
        if step == saved:
            message = differs(row, restored[0], exact=True)
            marks["restored"] = "differs" if message else "loaded, equal"
            if message:
                difference = difference or f"step {step}, as it was restored: {message}"
        lines.append(_line(row, marks))
        if difference:
            return Comparison(lines, saved, difference)
    if not (set(after) and max(after) == max(by_step) and max(before, default=0) > saved):
        raise AssertionError(f"stages are incomplete: {sorted(before)}, {sorted(after)}")
    return Comparison(lines, saved, None)


def differs(there: Row, here: Row, *, exact: bool) -> str | None:
    """Return the first difference between an uninterrupted row and another, in words.

    exact: loss and state must be equal to the last bit; else losses to a tolerance.
    """
    if "data" in there and "data" in here:
        if there["data"] != here["data"]:
            row = next(i for i, (a, b) in enumerate(_pairs(there, here)) if a != b)
            a, b = _pairs(there, here)[row]
            return f"its data differ: row {row} of the batch is row {a} of the text, here {b}"
        if there["batch"] != here["batch"]:
            return "its data differ: the same rows of the text give other tokens or weights"
    if there["rng"] != here["rng"]:
        a, b = next((a, b) for a, b in zip(there["rng"], here["rng"], strict=True) if a != b)
        return f"the random key differs: it is {a}, here {b}"
    if (
        "loss" in there
        and "loss" in here
        and _difference(there, here) > (0 if exact else TOLERANCE)
    ):
        return (
            f"the loss is {there['loss']!r}, here {here['loss']!r}, with the same data and "
            f"random key; {_leaf(there, here) or 'the state after it is the same'}"
        )
    return _leaf(there, here) if exact else None


def _leaf(there: Row, here: Row) -> str | None:
    """Return the first leaf that differs, with a value that does."""
    if there["leaves"].keys() != here["leaves"].keys():
        odd = sorted(there["leaves"].keys() ^ here["leaves"].keys())[0]
        return f"{odd} is a leaf of only one of the states"
    for path, leaf in there["leaves"].items():
        other = here["leaves"][path]
        if leaf["sha256"] == other["sha256"]:
            continue
        for (at, a), (_, b) in zip(leaf["values"], other["values"], strict=True):
            if a != b:
                position = [int(i) for i in np.unravel_index(at, leaf["shape"])]
                where = f"{path}{position}" if position else path
                return f"{where} is {a}, here {b}"
        return f"{path} has sha256 {leaf['sha256'][:12]}, here {other['sha256'][:12]}"
    return None


def _pairs(there: Row, here: Row) -> list[tuple[Any, Any]]:
    return list(zip(there["data"], here["data"], strict=True))


def _difference(there: Row, here: Row) -> float:
    a, b = there["loss"], here["loss"]
    if a == b:
        return 0.0
    relative = abs(b / a - 1) if a else math.inf
    return relative if math.isfinite(relative) else math.inf


def _mark(there: Row, here: Row, exact: bool) -> str:
    return "equal" if exact else f"loss {_difference(there, here):.0e} apart"


def _line(row: Row, marks: dict[str, str]) -> StepLine:
    ids, state = row.get("data"), hashlib.sha256()
    for path, leaf in sorted(row["leaves"].items()):
        state.update(f"{path} {leaf['sha256']}\n".encode())
    more = "..." if ids and len(ids) > 4 else ""
    return StepLine(
        step=row["step"],
        data=" ".join(map(str, ids[:4])) + more if ids else "",
        rng=row["rng"][1][:12],
        loss=f"{row['loss']:.6f}" if "loss" in row else "",
        state=state.hexdigest()[:12],
        **marks,
    )

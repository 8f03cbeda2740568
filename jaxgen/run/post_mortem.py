"""The end of a run whose steps went bad: what was wrong, and in which examples, in one file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen import data, files
from jaxgen.mesh import place
from jaxgen.train import autopsy
from jaxgen.train.state import State


def write(
    run: Any, state: State, step: int, batch: dict[str, np.ndarray], metrics: dict[str, Any]
) -> None:
    """Write post-mortem-STEP.json and raise the NonFiniteError that sums it up.

    run: a `job.Run`; batch: of this process, and metrics of all, at `step`.
    """
    run.checkpoints.wait()
    train = run.settings.train
    inputs_only = {name: value for name, value in batch.items() if name != "index"}
    if run.group.count > 1:
        assert run.mesh is not None
        inputs_only = place.place_batch(run.mesh, inputs_only, train.batch)
    found = place.under(run.mesh, autopsy.examine)(
        state,
        inputs_only,
        step,
        config=run.settings.model,
        loss=run.loss,
        accumulate=train.accumulate,
        optimizer=run.optimizer,
    )
    examples = _examples(run, found["rows"], batch["index"])
    path = run.folder / f"post-mortem-{step}.json"
    about = found | {"step": step, "examples": examples, "time": time.strftime("%FT%T%z")}
    run.group.lead("post-mortem", lambda: files.write(path, json.dumps(about, indent=2) + "\n"))
    kept = run.checkpoints.steps()
    stays = f"checkpoint {kept[-1]} stays" if kept else "there is no checkpoint yet"
    raise autopsy.error(found, step, train.patience, examples[:3], f"{stays}, details in {path}")


def _examples(run: Any, rows: Sequence[int], index: np.ndarray) -> list[str]:
    """Return in words what rows of the global batch hold; index: of this process's rows."""
    context, train = run.settings.model.context, run.settings.train
    begin = place.own_rows(run.mesh, train.batch)[0] * len(index)
    mine = {
        str(row): data.documents_of(run.corpus.train, int(index[row - begin]), context)
        for row in rows
        if begin <= row < begin + len(index)
    }

    def merge(values: list[str]) -> str:
        return json.dumps(
            {row: text for value in values for row, text in json.loads(value).items()}
        )

    known = json.loads(run.group.meet("examples", json.dumps(mine), merge))
    return [f"row {row} ({known[str(row)]})" for row in rows]

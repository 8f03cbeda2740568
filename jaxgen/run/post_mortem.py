"""The end of a run whose steps went bad: what was wrong, and in which examples, in one file."""

from __future__ import annotations

import json
import time
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

    run: a `training.Run`; batch and metrics: of `step`.
    """
    run.checkpoints.wait()
    train = run.settings.train
    inputs_only = {name: value for name, value in batch.items() if name != "index"}
    found = place.under(run.mesh, autopsy.examine)(
        state,
        inputs_only,
        step,
        config=run.settings.model,
        loss=run.loss,
        accumulate=train.accumulate,
    )
    context = run.settings.model.context
    examples = [
        f"row {row} ({data.documents_of(run.corpus.train, int(batch['index'][row]), context)})"
        for row in found["rows"]
    ]
    path = run.folder / f"post-mortem-{step}.json"
    about = found | {"step": step, "examples": examples, "time": time.strftime("%FT%T%z")}
    files.write(path, json.dumps(about, indent=2) + "\n")
    kept = run.checkpoints.steps()
    stays = f"checkpoint {kept[-1]} stays" if kept else "there is no checkpoint yet"
    raise autopsy.error(found, step, train.patience, examples[:3], f"{stays}, details in {path}")

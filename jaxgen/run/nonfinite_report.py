"""Ends a run after a streak of bad steps, with a file that names the parameters and examples."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen import data, files
from jaxgen.mesh import place
from jaxgen.train import nonfinite
from jaxgen.train.state import State


def report(
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
    located = place.under(run.mesh, nonfinite.locate)(
        state,
        inputs_only,
        step,
        config=run.settings.model,
        loss=run.loss,
        accumulate=train.accumulate,
        optimizer=run.optimizer,
    )
    examples = _examples(run, located["rows"], batch["index"])
    path = run.folder / f"post-mortem-{step}.json"
    about = located | {"step": step, "examples": examples, "time": time.strftime("%FT%T%z")}
    run.group.on_primary(
        "post-mortem", lambda: files.write(path, json.dumps(about, indent=2) + "\n")
    )
    steps = run.checkpoints.steps()
    left = f"checkpoint {steps[-1]} stays" if steps else "there is no checkpoint yet"
    raise nonfinite.report(
        located, step, train.patience, examples[:3], f"{left}, details in {path}"
    )


def _examples(run: Any, rows: Sequence[int], index: np.ndarray) -> list[str]:
    """Describe rows of the global batch; index: where each row of this process begins."""
    context, train = run.settings.row_length, run.settings.train
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

    known = json.loads(run.group.sync("examples", json.dumps(mine), merge))
    return [f"row {row} ({known[str(row)]})" for row in rows]

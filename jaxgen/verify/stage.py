"""One process of the proof of resume: some steps of a run, each written down in a line.

FOLDER/task.json says what to do (`Task`); FOLDER/NAME.jsonl gets a row a step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxgen import settings as sets
from jaxgen.errors import NonFiniteError
from jaxgen.mesh.settings import MeshSettings
from jaxgen.run import inputs
from jaxgen.run.folder import CHECKPOINTS, CONFIG, TOKENIZER, existing_settings
from jaxgen.run.job import Run
from jaxgen.store import Checkpoints, pytree_io
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train.loop import Callbacks, fit
from jaxgen.train.state import State

Name = Literal["whole", "killed", "restored"]
SAMPLES = 8  # values of each leaf that a row shows
SAVED = "saved"

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What the stages of one proof have in common; FOLDER/config.yaml holds the settings.

    source: the run whose newest checkpoint is the beginning, None to begin as a new run does.
    steps: how many are made; save: after how many of them the killed stage makes a checkpoint.
    mesh: of the restored stage, None for that of the settings.
    """

    cache: str
    source: str | None
    steps: int
    save: int
    mesh: dict[str, Any] | None

    def write(self, folder: Path) -> None:
        """Write FOLDER/task.json."""
        (folder / "task.json").write_text(json.dumps(asdict(self)), "utf-8")


def read_task(folder: Path) -> Task:
    """Return the task of a folder."""
    return Task(**json.loads((folder / "task.json").read_text("utf-8")))


def mesh_of(folder: Path, name: Name) -> MeshSettings:
    """Return the mesh that a stage has."""
    other = read_task(folder).mesh
    if name == "restored" and other is not None:
        return MeshSettings(**other)
    return existing_settings(folder).mesh


def _spread(mesh: MeshSettings, flags: str) -> None:
    """Where there are no accelerators, make as many devices of the cores as the mesh wants."""
    if "xla_force_host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", mesh.least)


def make_run(folder: Path, name: Name) -> tuple[Run, Task]:
    """Return the run that a stage makes steps of; it reads tokenizer and settings of the folder."""
    mesh = mesh_of(folder, name)
    task, settings = read_task(folder), replace(existing_settings(folder), mesh=mesh)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    corpus = inputs.prepare(settings, tokenizer, Path(task.cache), folder=folder, silent=True)
    devices = jax.devices()
    if mesh.data is not None:
        devices = devices[: mesh.least]
    run = Run(settings, folder, tokenizer, corpus, devices=tuple(devices))
    run.check()
    return run, task


def rows(run: Run, task: Task, name: Name) -> Iterator[Row]:
    """Yield a row of the state at the beginning, and of each step; {"saved": step} after a save.

    A step's row: step; data, the rows of the corpus in its batch; batch, the sha256 of all that
    the model gets; rng, the key of the state and the key that the next step folds from it; loss;
    leaves, sha256 and some values of each leaf of the state after it. The killed stage never ends
    by itself; the restored one begins at its checkpoint.
    """
    state, extra = _beginning(run, task, name)
    begin, batches = int(state.step), run.batches()
    try:
        if extra is not None:
            batches.restore(extra)
        first = begin - (task.save if name == "restored" else 0)
        yield describe(state)
        last = first + task.steps if name != "killed" else first + 1_000_000
        saving = first + task.save if name == "killed" else None
        yield from _steps(run, state, batches, last, saving)
    finally:
        batches.close()


def _beginning(run: Run, task: Task, name: Name) -> tuple[State, dict[str, Any] | None]:
    store = None
    if name == "restored":
        store = run.checkpoints
    elif task.source is not None:
        folder = Path(task.source) / CHECKPOINTS
        fingerprints = run.checkpoints.fingerprints
        store = Checkpoints(folder, keep_last=1, keep_best=0, fingerprints=fingerprints)
    restored = None if store is None else store.restore(run.expected())
    if restored is None:
        return run.begin(run.start()), None
    return restored.tree, restored.extra["data"]


def _steps(run: Run, state: State, batches: Any, last: int, saving: int | None) -> Iterator[Row]:
    """Yield the rows that the loop of `jaxgen train` makes, asked to stop after each step."""
    counter = _Seen(batches)
    limit = replace(run.settings.train, steps=last, validate_every=1, log_every=1)
    while int(state.step) < last:
        new_rows: list[Row] = []
        callbacks = _callbacks(run, counter, new_rows, saving)
        state, _, _ = fit(state, counter, run.step, limit, callbacks, counter)
        yield from new_rows


class _Seen:
    """The batches on their way to the loop, and its `MetricWriter`: remembers the last of each."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.batch, self.loss = batches, {}, float("nan")

    def __iter__(self) -> _Seen:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self.batch = next(self.batches)
        return self.batch

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        self.loss = metrics["loss"]

    def validation(self, step: int, metrics: dict[str, float]) -> None: ...


def _callbacks(run: Run, seen: _Seen, new_rows: list[Row], saving: int | None) -> Callbacks:
    def note(state: State) -> dict[str, float]:
        inputs_only = {k: np.asarray(v) for k, v in sorted(seen.batch.items()) if k != "index"}
        digest = hashlib.sha256("".join(map(pytree_io.digest, inputs_only.values())).encode())
        about = {"data": np.asarray(seen.batch["index"]).tolist(), "batch": digest.hexdigest()}
        new_rows.append(describe(state) | about | {"loss": seen.loss})
        return {"loss": seen.loss}

    def save(state: State, step: int) -> None:
        if step == saving:
            extra = {"data": seen.batches.state(), "valid_loss": None}
            run.checkpoints.save(step, state, extra, metric=None)
            run.checkpoints.wait()
            new_rows.append({SAVED: step})

    def refuse(state: State, step: int, *_: Any) -> None:
        raise NonFiniteError(f"step {step} ends a streak of bad steps; there is nothing to compare")

    return Callbacks(
        validate=note,
        sample=save,  # which comes last
        save=lambda *_: None,
        add_loss=lambda *_: None,
        is_best=lambda _: False,
        poll=lambda: None,
        stopping=lambda: bool(new_rows),
        phase=lambda *_: nullcontext(),
        on_bad_streak=refuse,
        rate=lambda step: 0.0,
        flops_per_token=0.0,
        peak=1.0,
        save_every=1,
        epoch=1,
        rollout=run.rollouts if run.is_policy else None,
    )


def describe(state: State) -> Row:
    """Return the row of a state: its step, its keys, and what its leaves hold."""
    step = int(state.step)
    folded = jax.random.fold_in(state.key, step)
    keys = [jax.random.key_data(key) for key in (state.key, folded)]
    described, arrays = pytree_io.to_host(state)
    leaves = {}
    for path, array in arrays.items():
        flat = array.reshape(-1)
        places = sorted({int(i) for i in np.linspace(0, max(flat.size - 1, 0), SAMPLES)})
        values = [[i, repr(flat[i].item())] for i in places if flat.size]
        shape = list(described[path].shape)
        leaves[path] = {"sha256": pytree_io.digest(array), "shape": shape, "values": values}
    return {
        "step": step,
        "rng": [np.asarray(key).tobytes().hex() for key in keys],
        "leaves": leaves,
    }


def write_settings(folder: Path, settings: Any, tokenizer: Any) -> None:
    """Write what `make_run` reads: config.yaml and tokenizer/."""
    tokenizer.save(folder / TOKENIZER)
    (folder / CONFIG).write_text(sets.dump(settings), "utf-8")


def main(words: list[str], prepare: Callable[[Path], None], flags: str) -> None:
    """Run one stage; `prepare` sets JAX up for a cache folder, flags: of XLA."""
    folder, name = Path(words[0]), words[1]
    prepare(Path(read_task(folder).cache))
    _spread(mesh_of(folder, name), flags)  # pyright: ignore[reportArgumentType]
    run, task = make_run(folder, name)  # pyright: ignore[reportArgumentType]
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(run, task, name):  # pyright: ignore[reportArgumentType]
            file.write(json.dumps(row) + "\n")
            file.flush()

"""What the model that a run begins with says of its preferences, computed once and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import data, files
from jaxgen import settings as sets
from jaxgen.mesh import place
from jaxgen.run.folder import ENVIRONMENT
from jaxgen.train.log_probs import completion_logps
from jaxgen.train.state import State

FILE = "reference.npz"
SPLITS = ("train", "valid")


@dataclass(frozen=True, eq=False)
class Reference:
    """The log-probabilities [records, 2] that the reference model gives each record's texts."""

    logps: np.ndarray

    def add(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a batch with the reference [B, 2] of its records."""
        record = batch["record"]
        found = np.where(record[:, None] < 0, 0, self.logps[record])
        return {**batch, "reference": found.astype(np.float32)}


def references(
    run: Any,
    first: State | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Reference]:
    """Return the Reference of each split, from the run's folder if it is of these weights and data.

    run: a `job.Run`. first: the state before the first step, whose model is the reference; None:
    it is made anew where it is asked for. The file names, by a digest, weights, data, template and
    rows; another is computed anew.
    """
    path, key = run.folder / FILE, _key(run)
    if saved := _read(path, key):
        return saved
    if path.exists():
        say(f"{path} is of other weights or data: the reference is computed anew")
    params = run.first_params() if first is None else run.model_params(first)
    logps = {split: _logps(run, split, params) for split in SPLITS}
    run.group.on_primary("reference", lambda: _write(path, key, logps))
    return {split: Reference(x) for split, x in logps.items()}


def reference_of(run: Any, split: str) -> Reference:
    """Return the Reference of any split, from the run's folder if it is there; nothing is kept."""
    saved = _read(run.folder / FILE, _key(run))
    return saved.get(split) or Reference(_logps(run, split, run.first_params()))


def _read(path: Path, key: str) -> dict[str, Reference]:
    """Return what a file keeps; nothing where it is not there, or of other weights or data."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as saved:
        if str(saved["key"]) != key:
            return {}
        return {split: Reference(saved[split]) for split in SPLITS}


def _key(run: Any) -> str:
    """Return the digest of all that decides the reference."""
    settings = run.settings
    path, begun = run.folder / ENVIRONMENT, {}
    if path.exists():
        begun = json.loads(path.read_bytes()).get("init_from") or {}
    adapter = sets.as_dict(settings.adapter)
    parts = [begun.get("sha256"), settings.train.seed, sets.as_dict(settings.model), adapter]
    parts += [getattr(run.corpus, split).digest for split in SPLITS]
    parts += [run.corpus.fingerprint, settings.objective.name, settings.objective.too_long]
    return sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _logps(run: Any, split: str, params: Any) -> np.ndarray:
    shard, train = getattr(run.corpus, split), run.settings.train
    if not len(shard.tokens):
        return np.zeros((0, 2), np.float32)
    config = run.settings.model
    step = jax.jit(lambda params, rows: completion_logps(params, config, rows))
    rows = data.in_order(
        shard,
        context=run.settings.row_length,
        batch=train.batch,
        process=place.own_rows(run.mesh, train.batch),
        objective=run.objective,
    )
    parts = []
    for batch in rows:
        if run.mesh is not None:
            batch = place.place_batch(run.mesh, batch, train.batch)
        parts.append(place.fetch(place.under(run.mesh, step)(params, batch)))
    # The last batch is filled up with padding.
    return np.concatenate(parts)[: run.ordered_rows(split).count].astype(np.float32)


def _write(path: Any, key: str, found: dict[str, np.ndarray]) -> None:
    from io import BytesIO

    raw = BytesIO()
    np.savez(raw, key=np.asarray(key), train=found["train"], valid=found["valid"])
    files.write(path, raw.getvalue())

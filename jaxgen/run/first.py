"""The quickstart: all of the main job on the text that comes with Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxgen.run.settings import config_folder, read_settings
from jaxgen.run.training import train


def quickstart(folder: Path, assignments: Sequence[str], *, cache: Path) -> None:
    """Train configs/quickstart.yaml in `folder` and say what came of it.

    Raises what `training.train` raises; a finished run is shown again.
    """
    settings = read_settings(config_folder() / "quickstart.yaml", assignments)
    train(settings, folder, cache=cache)
    valid = _last_validation(folder / "metrics.jsonl")
    print(f"\nvalidation: {valid['bits_per_byte']:.3f} bits per byte at step {valid['step']}")
    samples = sorted((folder / "samples").glob("*.txt"), key=lambda path: int(path.stem))
    if samples:
        print(f"\n{samples[-1].read_text(encoding='utf-8').strip()}")
    print(f"\nnext: jaxgen generate {folder} --prompt 'The return value is'")


def _last_validation(metrics: Path) -> dict:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.get("kind") == "valid"][-1]

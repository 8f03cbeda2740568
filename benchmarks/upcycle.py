"""Does a mixture of experts that begins as the quickstart beat it, at equal active compute?

    jaxgen quickstart
    python benchmarks/upcycle.py runs/quickstart --seeds 1 2 3

A run that is stopped goes on from its checkpoint, and one that is done is not made again: they lie
in runs/upcycle (or --runs), the figures of all that are done in results/upcycle.json.

`configs/upcycle.yaml`, and the dense model that goes on from the same checkpoint with the same
settings: optimizer, schedule, texts in the same order. What a token costs is counted as for MFU
(`jaxgen.train.flops`): the weights that it is multiplied with. The dense model makes as many steps
more as the router costs. Bits per byte are those of the validation text after the last step.
Writes results/upcycle.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import sides

from jaxgen import settings_yaml
from jaxgen.files import config_folder
from jaxgen.pretrained import model
from jaxgen.run.settings import build_settings
from jaxgen.run.training import train
from jaxgen.train import flops


def bits_per_byte(sections: dict[str, Any], folder: Path) -> float:
    """Return what a run of these settings ends with; runs side by side share a cache of text."""
    settings = build_settings(sections)
    if _bits_at(folder, settings.train.steps) is None:
        train(settings, folder, cache=folder.parent / "cache")
    bits = _bits_at(folder, settings.train.steps)
    assert bits is not None
    return bits


def _bits_at(folder: Path, step: int) -> float | None:
    """Return the bits per byte of a run's validation after a step; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "valid"]
        return next((row["bits_per_byte"] for row in rows if row["step"] == step), None)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="the run that both sides begin with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/upcycle"), help="where they lie")
    parser.add_argument("--steps", type=int, help="of the mixture; by default as configured")
    given = parser.parse_args()
    upcycled = settings_yaml.read_yaml(config_folder() / "upcycle.yaml")
    upcycled["init_from"] = str(given.base)
    steps = given.steps or upcycled["train"]["steps"]
    costs = {
        "dense": flops.per_token(model.read_config(given.base)),
        "upcycled": flops.per_token(build_settings(upcycled).model),
    }
    cases = []
    for seed in given.seeds:
        for side, cost in costs.items():
            count = round(steps * costs["upcycled"] / cost)
            sections = upcycled | {"model": upcycled["model"] if side == "upcycled" else {}}
            sections["train"] = upcycled["train"] | {"seed": seed, "steps": count}
            bits = bits_per_byte(sections, given.runs / f"{side}-{seed}")
            cases.append({"seed": seed, "side": side, "steps": count, "bits_per_byte": bits})
            print(cases[-1], flush=True)
    means = {
        side: statistics.mean(case["bits_per_byte"] for case in cases if case["side"] == side)
        for side in costs
    }
    about = {"flops_per_token": costs, "mean_bits_per_byte": means, "cases": cases}
    sides.write("upcycle", about | {"environment": sides.environment()})


if __name__ == "__main__":
    main()

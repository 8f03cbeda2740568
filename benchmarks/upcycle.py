"""Does a mixture of experts that begins as the quickstart beat it, at equal active compute?

    jaxgen quickstart
    python benchmarks/upcycle.py runs/quickstart --seeds 1 2 3

`configs/upcycle.yaml`, and the dense model that goes on from the same checkpoint with the same
settings: optimizer, schedule, texts in the same order. What a token costs is counted as for MFU
(`jaxgen.train.flops`): the weights that it is multiplied with. The dense model makes as many steps
more as the router costs. Bits per byte are those of the validation text after the last step.
Writes results/upcycle.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import sides

from jaxgen import settings_yaml
from jaxgen.pretrained import model
from jaxgen.run.settings import build_settings, config_folder
from jaxgen.run.training import train
from jaxgen.train import flops


def bits_per_byte(sections: dict[str, Any], folder: Path) -> float:
    """Return what a run of these settings ends with; runs side by side share a cache of text."""
    train(build_settings(sections), folder, cache=folder.parent / "cache")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["bits_per_byte"] for row in rows if row["kind"] == "valid"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="the run that both sides begin with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
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
    with tempfile.TemporaryDirectory() as home:
        for seed in given.seeds:
            for side, cost in costs.items():
                count = round(steps * costs["upcycled"] / cost)
                sections = upcycled | {"model": upcycled["model"] if side == "upcycled" else {}}
                sections["train"] = upcycled["train"] | {"seed": seed, "steps": count}
                bits = bits_per_byte(sections, Path(home) / f"{side}-{seed}")
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

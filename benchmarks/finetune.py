"""Does fine-tuning beat training from scratch in the same number of steps?

    python benchmarks/finetune.py tinyshakespeare.txt

A small Llama is trained on `python-docs`. Then, on the text given, with the same steps, batches and
optimizer: a model that begins with its weights, one drawn anew with its tokenizer, and one drawn
anew with a tokenizer of the text's own. Compared in bits per byte of the text's last twentieth,
which none of them sees in training. Writes results/finetune.json and results/finetune.png.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import jax

from jaxgen.cli import start
from jaxgen.run.settings import build_settings
from jaxgen.run.training import train

RESULTS = Path(__file__).parent / "results"
BPE = {"kind": "bpe", "vocab_size": 1024}
MODEL = {"context": 128, "layers": 4, "d_model": 128, "heads": 4, "d_ff": 352, "norm": "rms",
         "positions": "rope", "feed": "swiglu", "biases": "none"}  # fmt: skip
TRAIN = {"batch": 8, "schedule": "linear", "warmup": 10, "final_rate": 0.0, "beta2": 0.95,
         "optimizer": "muon"}  # fmt: skip
RATES = (2e-3, 4e-3, 8e-3)
ARMS = ("fine-tuned", "from scratch", "own tokenizer")


def run(folder, home, **sections):
    """Train in `folder` and return the rows of its validations and its seconds."""
    begin = time.perf_counter()
    sections["checkpoint"] = {"every": 10_000, "keep_last": 1, "keep_best": 0}
    train(build_settings(sections), folder, cache=home / "cache")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    valid = [row for row in rows if row["kind"] == "valid"]
    return valid, time.perf_counter() - begin


def measure(text, steps, first, seeds, home):
    before, seconds = run(
        home / "before", home, model=MODEL, tokenizer=BPE, data={"corpus": "python-docs"},
        train=TRAIN | {"steps": first, "learning_rate": 4e-3, "validate_every": first},
    )  # fmt: skip
    words = {"kind": "file", "file": str(home / "before/tokenizer/tokenizer.model")}
    arms = {
        "fine-tuned": {"init_from": str(home / "before")},
        "from scratch": {"model": MODEL, "tokenizer": words},
        "own tokenizer": {"model": MODEL, "tokenizer": BPE},
    }
    data = {"files": [str(text)], "split": "tail", "valid_fraction": 0.05, "test_fraction": 0.0}
    found = []
    for name, sections in arms.items():
        for rate in RATES:
            for seed in range(seeds):
                given = TRAIN | {"steps": steps, "learning_rate": rate, "seed": seed,
                                 "validate_every": max(steps // 4, 1)}  # fmt: skip
                folder = home / f"{name}-{rate}-{seed}"
                curve, took = run(folder, home, data=data, train=given, **sections)
                found.append({"arm": name, "learning_rate": rate, "seed": seed,
                              "seconds": round(took, 1), "curve": curve})  # fmt: skip
                print(name, rate, seed, round(curve[-1]["bits_per_byte"], 4), flush=True)
    return {"pretraining": {"steps": first, "seconds": round(seconds, 1), "valid": before[-1]},
            "steps": steps, "runs": found}  # fmt: skip


def last(runs):
    """The mean bits per byte at the end."""
    return sum(row["curve"][-1]["bits_per_byte"] for row in runs) / len(runs)


def best(found):
    """For each arm the runs of its best rate: none loses by a rate that is not its own."""
    chosen = {}
    for name in ARMS:
        by_rate = {
            rate: [r for r in found["runs"] if (r["arm"], r["learning_rate"]) == (name, rate)]
            for rate in RATES
        }
        chosen[name] = min(by_rate.values(), key=last)
    return chosen


def draw(found, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for (name, runs), color in zip(best(found).items(), ("C0", "C1", "C2"), strict=True):
        for row in runs:
            steps = [point["step"] for point in row["curve"]]
            bits = [point["bits_per_byte"] for point in row["curve"]]
            label = f"{name}, rate {row['learning_rate']:g}" if row is runs[0] else None
            axes.plot(steps, bits, color=color, marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="bits per byte, held-out text",
             title="Fine-tuning and training from scratch, the best of 3 rates")  # fmt: skip
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--pretraining", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        start.prepare_jax(Path(home) / "cache")
        found = measure(
            asked.text.absolute(), asked.steps, asked.pretraining, asked.seeds, Path(home)
        )
        about = json.loads((Path(home) / "before/env.json").read_text())
    commit = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty"]
    found |= {
        "text": asked.text.name,
        "bits_per_byte": {name: round(last(runs), 4) for name, runs in best(found).items()},
        "commit": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "environment": about,
        "devices": [device.device_kind for device in jax.devices()],
    }
    (RESULTS / "finetune.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, RESULTS / "finetune.png")
    print(json.dumps(found["bits_per_byte"], indent=1))


if __name__ == "__main__":
    main()

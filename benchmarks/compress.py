"""What smaller models cost: the ladder of SmolLM2, zeros that training heals, and a taught student.

    python benchmarks/compress.py ladder --out work --on python-docs.txt
    python benchmarks/compress.py heal runs/quickstart --out work --steps 500
    python benchmarks/compress.py teach runs/quickstart --out work --steps 300 --seeds 3

Each is a few calls of the command. What is finished in --out is not made again, and a run that was
stopped goes on, so that the same command may be cut short and given again. The figures are printed
and written to --results/compress_WHAT.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxgen import settings_yaml

RECIPES = "int8,int4,int4-gptq,int4-awq,nf4,wanda-2-4"


def jaxgen(*words: str) -> str:
    """Run a verb; return what it prints."""
    command = [sys.executable, "-m", "jaxgen", *words]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def loss_of(model: str | Path, *words: str) -> float:
    """Return the loss of a model in nats per token, of a run on its validation text."""
    return float(re.search(r"loss +([0-9.]+) nats", jaxgen("eval", str(model), *words))[1])


def train(config: str, out: Path, steps: int, *words: str) -> None:
    """Train a run, or go on with it, if it is not at its end."""
    if (out / "checkpoints" / f"{steps:08d}").exists():
        return
    begun = (out / "config.yaml").exists()
    jaxgen("train", *([str(out)] if begun else [config, *words, "--out", str(out)]))


def ladder(args: argparse.Namespace) -> dict:
    """Return the ladder, what GPTQ wins back of what int4 loses, and how fast int8 decodes."""
    out = args.out / "ladder"
    words = ["--recipes", args.recipes, "--data", args.data, "--on", *args.on]
    print(jaxgen("ladder", args.model, *words, "--rows", str(args.rows), "--out", str(out)))
    report = json.loads((out / "ladder.json").read_text())
    cost = {one["name"]: np.log1p(one["perplexity"]["value"]) for one in report["rungs"]}
    if {"int4", "int4-gptq"} <= cost.keys():
        report["won_back_by_gptq"] = 1 - cost["int4-gptq"] / cost["int4"]
    speed = {one["name"]: one["speed"]["1"] for one in report["rungs"]}
    if "int8" in speed:
        report["int8_cost"] = float(np.expm1(cost["int8"]))
        report["int8_times_as_fast"] = speed["int8"] / report["rungs"][0]["speed"]["1"]
    return report


def heal(args: argparse.Namespace) -> dict:
    """Return losses of a run: as it is, with 2:4 zeros, and after steps that keep the zeros."""
    sparse, healed = args.out / "sparse", args.out / "healed"
    if not sparse.exists():
        jaxgen("compress", args.model, "--recipe", "wanda-2-4", "--out", str(sparse))
    rate = ["train.learning_rate=3e-4", "train.warmup=20", f"train.steps={args.steps}"]
    keep = ["train.zeros=[layers/*]", "tokenizer.kind=init", f"init_from={sparse}"]
    config = str(Path(args.model) / "config.yaml")
    train(config, healed, args.steps, *keep, *rate, "train.seed=1")
    text = settings_yaml.read_yaml(Path(config))["data"]
    named = [f"data.{k}={json.dumps(text[k])}" for k in ("corpus", "files") if text[k]]
    whole = loss_of(args.model)
    cut = loss_of(sparse, *named, "--split", "valid")
    after = loss_of(healed)
    return {"whole": whole, "sparse": cut, "healed": after,
            "won_back": (cut - after) / (cut - whole)}  # fmt: skip


def teach(args: argparse.Namespace) -> dict:
    """Return losses of a smaller student, trained on the text alone and with a teacher, by seed."""
    config, losses = str(Path(args.model) / "config.yaml"), {"plain": [], "taught": []}
    for seed in range(args.seeds):
        for name in losses:
            out = args.out / f"{name}-{seed}"
            words = [
                f"train.seed={seed}",
                f"train.steps={args.steps}",
                f"model.layers={args.layers}",
                f"model.d_model={args.width}",
                f"model.d_ff={8 * args.width // 3}",
            ]
            words += [f"distill.teacher={args.model}"] if name == "taught" else []
            train(config, out, args.steps, *words)
            losses[name].append(loss_of(out))
    gain = np.subtract(losses["plain"], losses["taught"])
    half = 4.303 * gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) == 3 else None
    size = {"layers": args.layers, "width": args.width}
    return {**size, **losses, "gain": float(gain.mean()), "half_interval_95": half}


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("ladder", "heal", "teach"))
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("work"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--data", default="python-docs", help="calibration text")
    parser.add_argument("--on", nargs="+", default=["python-docs"], help="text to measure on")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    figures = {"ladder": ladder, "heal": heal, "teach": teach}[args.what](args)
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"compress_{args.what}.json"
    path.write_text(json.dumps({"steps": args.steps, **figures}, indent=2) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "rungs"}, indent=2))


if __name__ == "__main__":
    main()

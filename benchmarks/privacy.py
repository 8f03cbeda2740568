"""What private training costs: time and memory of a step, and bits per byte by epsilon.

    python benchmarks/privacy.py step            # GPT-2 6x384: ghost norms and vmap beside plain
    python benchmarks/privacy.py text FILE       # bits per byte of a text at epsilon 2, 8, 32, none
    python benchmarks/privacy.py lora FILE       # the same for LoRA on a model (--model smollm2)
    python benchmarks/privacy.py canaries FILE   # exposure of planted canaries, private and not
    python benchmarks/privacy.py bounds FILE     # 20 audits: lower bounds beside the accountant's

Rounds of the steps alternate in one process; time is the least of them, memory what the compiler
plans for temporaries beside the state. A text is trained on in short runs, a row of it a unit.
Each epsilon is written down as soon as it is measured (results/privacy_NAME.json, and drawn as
.png), and one that is there for the same settings is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import sides

import jaxgen
from jaxgen import tree
from jaxgen.audit.make import AuditSettings, make_audit
from jaxgen.models import api
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.run.settings import build_settings
from jaxgen.run.training import train
from jaxgen.train.private import CausalGhost, Private, gradients

SETTINGS = PrivacySettings(noise_multiplier=1.0, delta=1e-6, expected=6.0, seed=1)
GHOST = CausalGhost(lambda params, key: params, 0.0, 0.0, None)


def steps(config: jaxgen.ModelConfig, rule: optax.GradientTransformation) -> dict:
    """Return the plain step, and private ones."""
    fixed = {"config": config, "optimizer": rule, "loss": jaxgen.causal_loss}
    private = partial(Private, SETTINGS, tree.flatten(api.axes(config)))
    return {
        "plain": partial(jaxgen.train_step, **fixed),
        "ghost": partial(
            jaxgen.train_step, **fixed, gradients=partial(gradients, private=private(ghost=GHOST))
        ),
        "vmap": partial(
            jaxgen.train_step, **fixed, gradients=partial(gradients, private=private())
        ),
    }


def measure_steps(rows: int, context: int, vocab: int, rounds: int, names: list[str]) -> None:
    """Print time and memory of each step, and their shares of the plain one's."""
    config = jaxgen.ModelConfig(vocab_size=vocab, context=context, layers=6, d_model=384, heads=6)
    rule = optax.adamw(1e-3)
    make = lambda: jaxgen.train_state(  # noqa: E731
        jaxgen.init(config, jax.random.key(0)), rule, jax.random.key(1)
    )
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, context + 1)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    compiled, memory = {}, {}
    every = steps(config, rule)
    for name in names:
        jitted = jax.jit(every[name], donate_argnums=0)
        compiled[name] = jitted.lower(jax.eval_shape(make), batch).compile()
        plan = compiled[name].memory_analysis()
        memory[name] = plan.temp_size_in_bytes + plan.argument_size_in_bytes
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    states = {name: make() for name in compiled}
    for _ in range(rounds + 1):
        for name, step in compiled.items():
            since = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            seconds[name].append(time.perf_counter() - since)
    plain = min(seconds["plain"][1:])
    for name, times in seconds.items():
        least = min(times[1:])
        print(
            f"{name:6} {least:7.3f} s  {least / plain:5.2f} x   "
            f"{memory[name] / 2**20:8.0f} MiB  {memory[name] / memory['plain']:5.2f} x",
            flush=True,
        )


def scratch(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a small model of a text's bytes."""
    model = {"context": args.context, "layers": 2, "d_model": 64, "heads": 2, "positions": "rope"}
    return {
        "model": model,
        "tokenizer": {"kind": "bytes"},
        "train": {"learning_rate": 4e-3, "warmup": 20, "beta2": 0.95},
    } | common(path, args)


def lora(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of LoRA on a pretrained model."""
    return {
        "init_from": args.model,
        "adapter": {"kind": "lora", "rank": 8},
        "model": {"context": args.context},
        "train": {"learning_rate": 1e-3, "warmup": 3},
    } | common(path, args)


def common(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": {"files": [str(path)], "split": "tail", "valid_fraction": args.valid,
                 "test_fraction": 0.0},
        "checkpoint": {"every": args.steps},
    }  # fmt: skip


def bits(sections: dict[str, Any], epsilon: float | None, args: argparse.Namespace) -> float:
    """Return the validation's bits per byte of a run at an epsilon; None: not private."""
    own = {"steps": args.steps, "batch": args.rows, "validate_every": args.steps, "track": []}
    if epsilon is not None:
        private = {"epsilon": epsilon, "delta": 1e-5, "unit": "row", "clip": 0.5}
        own["privacy"] = private | {"expected": round(args.rows / 1.28)}
    sections = sections | {"train": sections["train"] | own}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        train(build_settings(sections), folder, cache=Path(name) / "cache")
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["kind"] == "valid"][-1]["bits_per_byte"]


def measure_text(path: Path, args: argparse.Namespace) -> None:
    """Write the bits per byte at each epsilon, and draw them."""
    sections = {"text": scratch, "lora": lora}[args.verb](path, args)
    name = f"privacy_{args.verb}" + ("" if args.verb == "text" else f"_{args.model}")
    about = {"settings": settings_of(args)}
    results = sides.RESULTS / f"{name}.json"
    figures = json.loads(results.read_text()) if results.exists() else {}
    measured = figures["bits_per_byte"] if figures.get("settings") == about["settings"] else {}
    for epsilon in args.epsilons:
        key = "none" if epsilon is None else f"{epsilon:g}"
        if key not in measured:
            measured[key] = round(bits(sections, epsilon, args), 4)
        print(f"epsilon {key:5} {measured[key]:.3f} bits per byte", flush=True)
        figures = about | {"bits_per_byte": measured, "environment": sides.environment()}
        sides.write(name, figures)
    draw(measured, sides.RESULTS / f"{name}.png", path.name)


def draw(measured: dict[str, float], png: Path, title: str) -> None:
    """Draw bits per byte by epsilon, with a line for what is not private."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    private = sorted((float(key), value) for key, value in measured.items() if key != "none")
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    axes.plot(*zip(*private, strict=True), marker="o", label="private")
    if "none" in measured:
        axes.axhline(measured["none"], color="#7b8794", linestyle="--", label="not private")
    axes.set(xscale="log", xlabel="epsilon (delta 1e-5, a row is a unit)",
             ylabel="bits per byte, validation", title=title)  # fmt: skip
    axes.set_xticks([x for x, _ in private], [f"{x:g}" for x, _ in private])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(png)


def settings_of(args: argparse.Namespace) -> dict[str, str]:
    """Return what was asked for, without what only says how much of it is measured now."""
    return {
        name: value.name if isinstance(value, Path) else str(value)
        for name, value in vars(args).items()
        if name != "epsilons"
    }


def audited(path: Path, home: Path, epsilon: float | None, args: argparse.Namespace, seed: int):
    """Return the audit of a run on the lines of a text, each a unit, with canaries among them."""
    lines = [line for line in path.read_text().splitlines() if len(line) >= 16][: args.lines]
    records = home / "lines.jsonl"
    records.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    own = {"steps": args.steps, "batch": args.rows, "learning_rate": 4e-3, "warmup": 20,
           "beta2": 0.95, "seed": seed, "validate_every": args.steps, "track": [],
           "spike": None, "weight_decay": 0.0}  # fmt: skip
    if epsilon is not None:
        own["privacy"] = {"epsilon": epsilon, "delta": 1e-4, "clip": 0.5,
                          "expected": round(args.rows / 1.5)}  # fmt: skip
        own.pop("spike")
    width = args.width
    sections = {
        "model": {"context": 48, "layers": 2, "d_model": width, "heads": 2, "positions": "rope"},
        "tokenizer": {"kind": "bytes"},
        "data": {"files": [str(records)], "split": "tail", "valid_fraction": 0.1,
                 "test_fraction": 0.0, "canaries": {"number": args.canaries, "seed": seed}},
        "train": own,
        "checkpoint": {"every": args.steps},
    }  # fmt: skip
    name = "plain" if epsilon is None else f"{epsilon:g}"
    folder = home / f"{name}-{seed}"
    train(build_settings(sections), folder, cache=home / "cache")
    settings = AuditSettings(candidates=args.candidates, members=64, length=16, batch=256)
    return make_audit(folder, settings, cache=home / "cache", say=print)


def measure_canaries(path: Path, args: argparse.Namespace) -> None:
    """Write the exposure of canaries in a run without privacy, and at epsilon 8."""
    figures: dict[str, Any] = {"settings": settings_of(args)}
    with tempfile.TemporaryDirectory() as name:
        for epsilon in (None, 8.0):
            one = audited(path, Path(name), epsilon, args, 0)
            kind = "none" if epsilon is None else f"{epsilon:g}"
            bits = {side: one["exposure"][side] for side in ("planted", "left_out")}
            figures[kind] = bits | {"most": one["exposure"]["most"], "epsilon": one["epsilon"],
                                    "membership": one["membership"]}  # fmt: skip
            print(f"epsilon {kind}: {bits}", flush=True)
    sides.write("privacy_canaries", figures | {"environment": sides.environment()})


def measure_bounds(path: Path, args: argparse.Namespace) -> None:
    """Write lower and upper bounds of runs at several epsilons; no lower one may be above."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(args.runs):
            found = audited(path, Path(name), (1.0, 2.0, 4.0, 8.0)[seed % 4], args, seed)
            rows.append(found["epsilon"] | {"seed": seed})
            print(rows[-1], flush=True)
            assert rows[-1]["lower"] <= rows[-1]["upper"], rows[-1]
    figures = {"settings": settings_of(args), "runs": rows}
    sides.write("privacy_bounds", figures | {"environment": sides.environment()})


def epsilon_of(word: str) -> float | None:
    return None if word == "none" else float(word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step")
    for name, value in (("rows", 8), ("context", 256), ("vocab", 512), ("rounds", 3)):
        step.add_argument(f"--{name}", type=int, default=value)
    step.add_argument("--steps", nargs="+", default=["plain", "ghost", "vmap"])
    for verb, steps, rows, context in (("text", 250, 256, 64), ("lora", 30, 32, 32)):
        text = verbs.add_parser(verb)
        text.add_argument("file", type=Path)
        text.add_argument("--epsilons", nargs="+", type=epsilon_of, default=[None, 32.0, 8.0, 2.0])
        for name, value in (("steps", steps), ("rows", rows), ("context", context)):
            text.add_argument(f"--{name}", type=int, default=value)
        text.add_argument("--valid", type=float, default=0.02, help="part that is validated on")
        if verb == "lora":
            text.add_argument("--model", default="smollm2")
    for verb, many in (
        ("canaries", {"steps": 250, "rows": 32, "lines": 60, "width": 48, "canaries": 12,
                      "candidates": 40_000}),
        ("bounds", {"steps": 40, "rows": 48, "lines": 150, "width": 16, "canaries": 100,
                    "candidates": 1, "runs": 20}),
    ):  # fmt: skip
        one = verbs.add_parser(verb)
        one.add_argument("file", type=Path)
        for name, value in many.items():
            one.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    if args.verb == "step":
        measure_steps(args.rows, args.context, args.vocab, args.rounds, args.steps)
    elif args.verb in ("canaries", "bounds"):
        {"canaries": measure_canaries, "bounds": measure_bounds}[args.verb](args.file, args)
    else:
        measure_text(args.file, args)


if __name__ == "__main__":
    main()

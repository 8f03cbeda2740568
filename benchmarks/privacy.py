"""What private training costs: time and memory of a step, and bits per byte by epsilon.

    python benchmarks/privacy.py step            # GPT-2 6x384: ghost norms and vmap beside plain
    python benchmarks/privacy.py text FILE       # bits per byte of a text at epsilon 2, 8, 32, none

Rounds of the steps alternate in one process; time is the least of them, memory what the compiler
plans for temporaries beside the state. A text is trained on in short runs, a row of it a unit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

import jaxgen
from jaxgen import tree
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


def measure_text(path: Path, count: int) -> None:
    """Print the validation's bits per byte of short runs at each epsilon."""
    for epsilon in (None, 32.0, 8.0, 2.0):
        sections = {
            "model": {"context": 64, "layers": 2, "d_model": 96, "heads": 3, "positions": "rope"},
            "tokenizer": {"kind": "bytes"},
            "data": {"files": [str(path)], "split": "tail", "valid_fraction": 0.02},
            "train": {
                "steps": count,
                "batch": 128,
                "learning_rate": 3e-3,
                "warmup": 20,
                "validate_every": count,
                "track": [],
            },
            "checkpoint": {"every": count},
        }
        if epsilon is not None:
            private = {"epsilon": epsilon, "delta": 1e-5, "unit": "row", "clip": 0.5}
            sections["train"]["privacy"] = private
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            train(build_settings(sections), folder, cache=Path(name) / "cache")
            rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            last = [row for row in rows if row["kind"] == "valid"][-1]
        told = "none" if epsilon is None else f"{epsilon:g}"
        print(f"epsilon {told:5} {last['bits_per_byte']:.3f} bits per byte", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step")
    for name, value in (("rows", 8), ("context", 256), ("vocab", 512), ("rounds", 3)):
        step.add_argument(f"--{name}", type=int, default=value)
    step.add_argument("--steps", nargs="+", default=["plain", "ghost", "vmap"])
    text = verbs.add_parser("text")
    text.add_argument("file", type=Path)
    text.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if args.verb == "step":
        measure_steps(args.rows, args.context, args.vocab, args.rounds, args.steps)
    else:
        measure_text(args.file, args.steps)


if __name__ == "__main__":
    main()

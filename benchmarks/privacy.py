"""What private training costs: time and memory of a step, and bits per byte by epsilon.

    python benchmarks/privacy.py step            # GPT-2 6x384: ghost norms and vmap beside plain
    python benchmarks/privacy.py text FILE       # bits per byte of a text at epsilon 2, 8, 32, none
    python benchmarks/privacy.py lora FILE       # the same for LoRA on a model (--model smollm2)
    python benchmarks/privacy.py canaries FILE   # exposure of planted canaries, private and not
    python benchmarks/privacy.py bounds          # 20 runs: lower bounds beside the accountant's

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
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import sides

import jaxgen
from jaxgen import tree
from jaxgen.audit import attacks
from jaxgen.audit.make import AuditSettings, make_audit
from jaxgen.data.units import Poisson
from jaxgen.models import api
from jaxgen.privacy import accountant
from jaxgen.privacy.accountant import Mechanism
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.run.settings import build_settings, read_settings
from jaxgen.run.training import train
from jaxgen.train.private import CausalGhost, Private, gradients

ROOT = Path(__file__).resolve().parent.parent
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
        if name not in ("epsilons", "seeds")
    }


def audited(config: str, path: Path, home: Path, args: argparse.Namespace, *words: str) -> dict:
    """Return the audit of a run on the lines of a text, each a user, with canaries among them."""
    lines = [line for line in path.read_text().splitlines() if len(line) >= 16][: args.lines]
    rows = [{"text": line, "user": f"user {i}"} for i, line in enumerate(lines)]
    records = home / "records.jsonl"
    records.write_text("\n".join(map(json.dumps, rows)))
    settings = read_settings(ROOT / "configs" / f"{config}.yaml", [f"data.files=[{records}]",
                             "train.track=[]", *words])  # fmt: skip
    folder = home / f"run-{len(list(home.glob('run-*')))}"
    train(settings, folder, cache=home / "cache")
    length = settings.model.context // 3
    how = AuditSettings(candidates=args.candidates, members=args.members, prefix=length,
                        length=length, batch=256)  # fmt: skip
    return make_audit(folder, how, cache=home / "cache", say=print)


def private(delta: float, **given: float) -> list[str]:
    """Return the overrides of a private run, whose units are users."""
    given = {"delta": delta, "unit": "user", "clip": 0.5} | given
    return [f"train.privacy.{name}={value}" for name, value in given.items()]


def measure_canaries(path: Path, args: argparse.Namespace) -> None:
    """Write the exposure of canaries in runs without privacy and at epsilon 8, and draw them."""
    name, settings = "privacy_canaries", settings_of(args)
    results = sides.RESULTS / f"{name}.json"
    known = json.loads(results.read_text()) if results.exists() else {}
    runs = known.get("runs", {}) if known.get("settings") == settings else {}
    for seed in args.seeds:
        for kind in args.epsilons:
            key = f"{'none' if kind is None else f'{kind:g}'}, seed {seed}"
            words = [f"{part}.seed={seed}" for part in ("train", "data.canaries")]
            if kind is not None:
                words += private(1e-5, epsilon=kind)
            if key not in runs:
                with tempfile.TemporaryDirectory() as home:
                    since = time.process_time()
                    one = audited("canaries", path, Path(home), args, *words)
                    runs[key] = one["exposure"] | {
                        "epsilon": one["epsilon"], "membership": one["membership"],
                        "cpu_seconds": round(time.process_time() - since, 1)}  # fmt: skip
            print(key, {side: runs[key][side] for side in ("planted", "left_out")}, flush=True)
            about = {"settings": settings, "runs": runs, "environment": sides.environment()}
            sides.write(name, about)
    draw_canaries(runs, sides.RESULTS / f"{name}.png")


def draw_canaries(runs: dict[str, Any], png: Path) -> None:
    """Draw the exposure of each canary, planted and left out, run by run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.7 + 0.8 * len(runs)), dpi=150)
    for y, (_, run) in enumerate(sorted(runs.items(), reverse=True)):
        for shift, side, color in ((0.12, "planted", "#2f6fb0"), (-0.12, "left_out", "#d9722e")):
            bits = run["bits"][side]
            label = side.replace("_", " ") if y == 0 else None
            axes.plot(bits, [y + shift] * len(bits), "o", color=color, alpha=0.45, label=label)
            axes.plot(run[side]["mean"], y + shift, "|", color=color, markersize=18)
    names = [f"epsilon {key}".replace("epsilon none", "not private") for key in sorted(runs)]
    axes.set_yticks(range(len(runs)), names[::-1])
    axes.axvline(1.44, color="#7b8794", linestyle="--", linewidth=1)
    axes.set_xlabel("exposure, bits (a bar: the mean; dashed: the mean of a model that saw none)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.tight_layout()
    figure.savefig(png)


def measure_bounds(args: argparse.Namespace) -> None:
    """Write lower and upper bounds of runs of several noises; no lower one may be above.

    A run's text is the canaries that are planted, each a row of digits and a unit. Its steps,
    sampling, accountant and bound are those of `jaxgen train` and `jaxgen audit`, without folders,
    so that runs of one noise are compiled once.
    """
    config = jaxgen.ModelConfig(vocab_size=11, context=args.digits, layers=1, d_model=args.width,
                                heads=2, positions="rope")  # fmt: skip
    rule, delta, rows = optax.adam(1e-2), 1e-4, []
    score = jax.jit(lambda params, own: -jaxgen.causal_loss(params, config, own).nll)
    for noise in args.noises:
        how = PrivacySettings(noise_multiplier=noise, delta=delta, clip=0.5, seed=1,
                              expected=args.rows / 2)  # fmt: skip
        own = Private(how, tree.flatten(api.axes(config)), ghost=GHOST)
        step = jax.jit(partial(jaxgen.train_step, config=config, optimizer=rule,
                               loss=jaxgen.causal_loss, gradients=partial(gradients, private=own)),
                       donate_argnums=0)  # fmt: skip
        for seed in range(args.runs // len(args.noises)):
            draw = np.random.default_rng([seed, int(100 * noise)])
            texts = draw.integers(0, 10, (args.canaries, args.digits)).astype(np.int32)
            coins = draw.random(args.canaries) < 0.5
            units = np.flatnonzero(coins)
            rate, secret = args.rows / 2 / len(units), int(draw.integers(2**62))
            rows_of: Any = SimpleNamespace(count=len(units))
            sampled = Poisson(rows_of, rate, args.rows, secret, (0, 1))
            key = jax.random.key(int(draw.integers(2**31)))
            state = jaxgen.train_state(jaxgen.init(config, key), rule, key)
            for number in range(args.steps):
                state, _ = step(state, batch_of(texts[units[sampled.units(number)]], args.rows))
            scores = np.asarray(score(state.params, batch_of(texts, args.canaries)))
            found = attacks.epsilon_bound(scores, coins, delta)
            how_often = Mechanism(noise, rate, len(units), args.rows)
            upper = accountant.epsilon(how_often, args.steps, delta, interval=1e-3)
            rows.append({"noise": noise, "upper": upper, "lower": found.epsilon,
                         "guesses": found.guesses, "right": found.right})  # fmt: skip
            print(rows[-1], flush=True)
    above = sum(row["lower"] > row["upper"] for row in rows)
    figures = {"settings": settings_of(args), "runs": rows, "above": above}
    sides.write("privacy_bounds", figures | {"environment": sides.environment()})


def batch_of(texts: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Return texts as a batch: 10, then its digits; padded to so many rows, which weigh nothing."""
    tokens = np.zeros((rows, texts.shape[1] + 1), np.int32)
    tokens[: len(texts)] = np.pad(texts, ((0, 0), (1, 0)), constant_values=10)
    weights = np.zeros((rows, texts.shape[1]), np.float32)
    weights[: len(texts)] = 1
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def epsilon_of(word: str) -> float | None:
    return None if word == "none" else float(word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step")
    for name, value in (("rows", 8), ("context", 256), ("vocab", 512), ("rounds", 3)):
        step.add_argument(f"--{name}", type=int, default=value)
    step.add_argument("--steps", nargs="+", default=["plain", "ghost", "vmap"])
    # Of LoRA few steps of few rows, for 135 million parameters take a second a row on two cores.
    for verb, steps, rows, context, valid in (
        ("text", 250, 256, 64, 0.02), ("lora", 12, 16, 32, 0.005)
    ):  # fmt: skip
        text = verbs.add_parser(verb)
        text.add_argument("file", type=Path)
        text.add_argument("--epsilons", nargs="+", type=epsilon_of, default=[None, 32.0, 8.0, 2.0])
        for name, value in (("steps", steps), ("rows", rows), ("context", context)):
            text.add_argument(f"--{name}", type=int, default=value)
        text.add_argument("--valid", type=float, default=valid, help="part that is validated on")
        if verb == "lora":
            text.add_argument("--model", default="smollm2")
    canaries = verbs.add_parser("canaries")
    canaries.add_argument("file", type=Path)
    canaries.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    canaries.add_argument("--epsilons", nargs="+", type=epsilon_of, default=[None, 8.0])
    bounds = verbs.add_parser("bounds")
    bounds.add_argument("--noises", nargs="+", type=float, default=[8.0, 3.0, 1.0, 0.5])
    for own, many in (
        (canaries, {"lines": 4000, "candidates": 40_000, "members": 256}),
        (bounds, {"steps": 60, "rows": 256, "width": 32, "canaries": 400, "digits": 3,
                  "runs": 20}),
    ):  # fmt: skip
        for name, value in many.items():
            own.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    if args.verb == "step":
        measure_steps(args.rows, args.context, args.vocab, args.rounds, args.steps)
    elif args.verb == "bounds":
        measure_bounds(args)
    else:
        {"canaries": measure_canaries}.get(args.verb, measure_text)(args.file, args)


if __name__ == "__main__":
    main()

"""How do time and memory of a training step grow, axis by axis?

    python benchmarks/scaling.py                            all axes: memory, time, picture
    python benchmarks/scaling.py --axes context --of memory
    python benchmarks/scaling.py --size tiny                two points an axis, to see that it runs

Each point is a process of its own, one for memory and one for time: for time the allocator is told
to keep what is freed, as in training, after which resident memory says nothing of a step. Memory:

- planned: the temporaries of the compiled step, as XLA laid them out (`memory_analysis`): all that
  a step holds beside parameters, optimizer and batch;
- resident: how far resident memory rises above what it was before the first step;
- analytic: what `jaxgen plan` says of the same bytes, from shapes alone;
- loss: the temporaries of the vocabulary loss and its gradients alone, planned.

Fits are least squares of logarithms, over all points and over the last three, the tail: y ~ x^p.
Results are merged into results/scaling.json; results/scaling.png shows them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sides

BASE = {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none"}
TAIL, ENOUGH = 3, 12.0  # points of a tail; seconds after which no further step is timed
SIZES: dict[str, int | None] = {"full": None, "tiny": 2}  # points of an axis; None: all
KINDS = ("memory", "time")
MIB = 2.0**20


class Axis(NamedTuple):
    """What grows, over which values, and what stays."""

    values: tuple[int, ...]
    fixed: dict[str, int]
    label: str


AXES = {
    "context": Axis(
        (512, 1024, 2048, 4096, 8192, 16384, 32768),
        {"batch": 1, "layers": 1, "d_model": 64, "vocab_size": 512},
        "sequence length",
    ),
    "batch": Axis(
        (1, 2, 4, 8, 16, 32),
        {"context": 256, "layers": 2, "d_model": 128, "vocab_size": 4096},
        "rows of a batch",
    ),
    "layers": Axis(
        (1, 2, 4, 8, 16, 32),
        {"context": 256, "batch": 4, "d_model": 128, "vocab_size": 512},
        "layers",
    ),
    "d_model": Axis(
        (64, 128, 256, 512, 1024),
        {"context": 256, "batch": 2, "layers": 2, "vocab_size": 512},
        "width",
    ),
    "vocab_size": Axis(
        (4096, 8192, 16384, 32768, 65536, 131072, 262144),
        {"context": 1024, "batch": 1, "layers": 1, "d_model": 64},
        "vocabulary",
    ),
}
HEAD = 32


def settings_of(axis: str, value: int) -> Any:
    """Return the Settings of a point."""
    from jaxgen.run.settings import build_settings

    sizes = AXES[axis].fixed | {axis: value}
    batch = sizes.pop("batch")
    model = BASE | sizes | {"heads": sizes["d_model"] // HEAD, "d_ff": 4 * sizes["d_model"]}
    return build_settings({"model": model, "train": {"batch": batch, "steps": 10, "warmup": 1}})


def prepared(settings: Any) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Return (compiled step, how to make its first state, batch)."""
    import jax

    from jaxgen.models import api
    from jaxgen.run import shapes
    from jaxgen.run.step import step_of
    from jaxgen.train import optimizer

    rule = optimizer.make(settings.train, api.axes(settings.model))
    batch = shapes.batch(settings)
    lowered = jax.jit(step_of(settings, rule), donate_argnums=0).lower(
        shapes.state(settings), batch
    )
    drawn, (rows, width) = np.random.default_rng(0), batch["tokens"].shape
    tokens = drawn.integers(0, settings.model.V, (rows, width + 1)).astype(np.int32)
    given = {name: np.ones(shape.shape, shape.dtype) for name, shape in batch.items()}
    given |= {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    given["positions"] = np.tile(np.arange(width, dtype=np.int32), (rows, 1))
    return lowered.compile(), jax.jit(lambda: shapes.fresh(settings, rule)), given


def memory(settings: Any) -> dict[str, float]:
    """Return the bytes of a step, as the compiler, the system and the plan see them."""
    import jax

    from jaxgen.plan import probe
    from jaxgen.profile.chips import Chip
    from jaxgen.run import forecast

    program, begin, batch = prepared(settings)
    state = jax.block_until_ready(begin())
    peak = probe.Peak()
    for _ in range(2):
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
    resident = peak.bytes()
    assert np.isfinite(metrics["loss"])
    plan = forecast.plan_memory(settings, Chip("cpu", 1e12, 1e12, 1e11, 1e11, "cpu"), 1)
    return {
        "planned": temporaries(program),
        "resident": resident,
        "analytic": round(plan.total - plan.state),
        "state": round(plan.state),
        "loss": loss_memory(settings),
    }


def loss_memory(settings: Any) -> int:
    """Return the temporary bytes of the vocabulary loss with its gradients, without the model."""
    import jax
    import jax.numpy as jnp

    from jaxgen.ops.losses import vocabulary_loss
    from jaxgen.train.losses import LOGITS_AT_ONCE

    model, rows = settings.model, settings.train.batch
    chunk = max(LOGITS_AT_ONCE // (rows * model.V), 1)
    options = {"cap": None, "smoothing": 0.0, "z": 0.0, "chunk": chunk, "dtype": "float32"}
    places = (rows, model.context)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((*places, model.d_model), jnp.float32), ((model.V, model.d_model), jnp.float32),
            (places, jnp.int32), (places, jnp.float32),
        )
    ]  # fmt: skip
    loss = jax.value_and_grad(
        lambda *given: vocabulary_loss(*given, **options), argnums=(0, 1), has_aux=True
    )
    return temporaries(jax.jit(loss).lower(*shapes).compile())


def temporaries(program: Any) -> int:
    """Return the bytes that a compiled program holds beside arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def timed(settings: Any, rounds: int) -> dict[str, float]:
    """Return the seconds of a step: the median of `rounds`, after one that is not counted."""
    import jax

    from jaxgen.ops.cpu import allocator
    from jaxgen.train import flops

    allocator.tune()
    program, begin, batch = prepared(settings)
    state, seconds = begin(), []
    began = time.perf_counter()
    for _ in range(rounds + 1):
        start = time.perf_counter()
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        if len(seconds) > 2 and time.perf_counter() - began > ENOUGH:
            break
    found = sides.figures(seconds[1:])
    work = flops.per_token(settings.model) * settings.train.batch * settings.model.context
    return found | {"seconds": found["median_seconds"], "flops": work}


def exponent(points: list[tuple[float, float]]) -> float:
    """Return p of the least squares fit y ~ x^p."""
    x, y = np.log(np.asarray(points, float)).T
    return round(float(np.polyfit(x, y, 1)[0]), 3) + 0.0  # no -0.0


def fits(points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the exponents, over all points and over the tail, of each figure that all have."""
    found = {}
    for name in ("planned", "resident", "analytic", "loss", "seconds"):
        known = [(p["value"], p[name]) for p in points if p.get(name, 0) > 0]
        if len(known) >= 2:
            found[name] = {"all": exponent(known), "tail": exponent(known[-TAIL:])}
    return found


def point(axis: str, value: int, kind: str, rounds: int) -> dict[str, Any]:
    """Return the figures of one point, from a process of its own."""
    words = [sys.executable, __file__, "--serve", axis, str(value), kind, "--rounds", str(rounds)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{axis}={value}: the process of its {kind} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    axis: str, values: list[int], kinds: list[str], rounds: int, known: dict
) -> dict[str, Any]:
    """Return an axis, with what is measured now of `values` in the place of what was known."""
    points = {p["value"]: p for p in known.get("points", [])}
    environments = dict(known.get("environments", {}))
    for value in values:
        for kind in kinds:
            found = point(axis, value, kind, rounds)
            points[value] = points.get(value, {"value": value}) | found
            print(axis, value, kind, found, file=sys.stderr, flush=True)
    environments |= dict.fromkeys(kinds, sides.environment())
    ordered = [points[value] for value in sorted(points)]
    return {
        "fixed": AXES[axis].fixed,
        "points": ordered,
        "exponents": fits(ordered),
        "environments": environments,
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw memory above and time below, an axis a column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in AXES if name in found]
    figure, grid = pyplot.subplots(
        2, len(names), figsize=(3.5 * len(names), 7.2), squeeze=False, sharex="col"
    )
    for column, name in enumerate(names):
        upper, lower = grid[:, column]
        points, powers = found[name]["points"], found[name]["exponents"]
        shown = {
            "planned": ("C0", "o-", "temporaries, planned by XLA"),
            "resident": ("C1", "s--", "rise of resident memory"),
            "analytic": ("C7", ":", "jaxgen plan"),
            "loss": ("C2", "^-", "of which the loss alone"),
        }
        for figure_name, (color, style, label) in shown.items():
            known = [(p["value"], p[figure_name] / MIB) for p in points if p.get(figure_name)]
            if known:
                power = powers.get(figure_name, {}).get("tail")
                words = f"{label}: {power:.2f}" if power is not None else label
                upper.plot(*zip(*known, strict=True), style, color=color, ms=4, label=words)
        for label, values in _naive(name, points):
            upper.plot(*values, "-.", color="C3", lw=1, label=label)
        known = [(p["value"], p["seconds"]) for p in points if p.get("seconds")]
        if known:
            power = powers["seconds"]["tail"]
            lower.plot(
                *zip(*known, strict=True), "o-", color="C4", ms=4, label=f"a step: {power:.2f}"
            )
        for axes in (upper, lower):
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(frameon=False, fontsize=7.5, loc="upper left")
            axes.margins(y=0.25)
        lower.set(xlabel=AXES[name].label)
    grid[0][0].set(ylabel="MiB")
    grid[1][0].set(ylabel="seconds of a step")
    figure.suptitle("A training step along each axis; numbers are exponents of the last 3 points")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _naive(axis: str, points: list[dict[str, Any]]) -> list[tuple[str, tuple]]:
    """Return what would be held if nothing were cut: all scores, all logits, once in float32."""
    values = [p["value"] for p in points]
    fixed = AXES[axis].fixed
    if axis == "context":
        heads = fixed["d_model"] // HEAD
        return [("all scores of a layer", (values, [4 * heads * v**2 / MIB for v in values]))]
    if axis == "vocab_size":
        logits = 4 * fixed["batch"] * fixed["context"]
        return [("all logits", (values, [logits * v / MIB for v in values]))]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--of", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are timed")
    parser.add_argument("--smallest", type=int, default=0, help="leave out smaller values")
    parser.add_argument("--largest", type=int, default=10**9, help="leave out larger values")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        axis, value, kind = given.serve
        settings = settings_of(axis, int(value))
        print(json.dumps(memory(settings) if kind == "memory" else timed(settings, given.rounds)))
        return
    path = sides.RESULTS / "scaling.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for axis in given.axes:
        values = AXES[axis].values[: SIZES[given.size]]
        chosen = [value for value in values if given.smallest <= value <= given.largest]
        known[axis] = measure(axis, chosen, given.of, given.rounds, known.get(axis, {}))
        sides.write("scaling", {name: known[name] for name in AXES if name in known})
    if find_spec("matplotlib") is None:
        print('no scaling.png: pip install "jaxgen[plot]" to have it', file=sys.stderr)
    else:
        draw(known, sides.RESULTS / "scaling.png")


if __name__ == "__main__":
    main()

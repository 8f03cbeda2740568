"""What does each form in `jaxgen/ops/cpu` gain on this machine, in time and in memory?

    python benchmarks/cpu_twins.py                          all, about an hour on two quiet cores
    python benchmarks/cpu_twins.py --shapes 6x384 --work train_float32 --twins argmax

Each kind of work is compiled as users run it, once more with each form switched off
(`ops.cpu.disabled`) and, where --twins leaves none out, with all off. The programs run alternately
in one process; ratios are of the least of all rounds. CPU seconds are those of all threads:
neighbours on a shared machine move them less than they move the clock. The allocator and the pause
act on a process, so each has processes of its own. A form whose best ratio is under 1.03 on both
shapes, in time and in memory, is to be deleted.
Figures: results/cpu_twins.json; a run replaces those that it measures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import sides

SHAPES: dict[str, dict[str, Any]] = {
    "6x384": {
        "vocab_size": 8192, "context": 256, "layers": 6, "d_model": 384, "heads": 6, "batch": 4,
    },
    "12x768": {
        "vocab_size": 50257, "context": 256, "layers": 12, "d_model": 768, "heads": 12, "batch": 2,
    },
}  # fmt: skip
LAYOUT = ("fused_weights", "transposed_weights", "unrolled_layers")
DRAWN = ("argmax", "radix_select", "threefry")
# What each kind of work can show of a form.
WORK = {
    "train_float32": (
        *("blocked_attention", "compile_options", "threefry", "unrolled_layers"),
        "weight_gradients",
    ),
    "train_bfloat16": ("bfloat16", "blocked_attention", "weight_gradients"),
    "decode_1_float32": ("argmax", *LAYOUT),
    "decode_8_float32": (*DRAWN, "few_rows", *LAYOUT),
    "decode_1_bfloat16": (*DRAWN, "one_row", *LAYOUT),
    "decode_1_int8": ("one_row", *LAYOUT),
    "process": ("allocator", "pause"),
}
ON, OFF = "all on", "all off"
RESULTS = sides.RESULTS / "cpu_twins.json"
STEPS = 12  # of a process


class Side:
    """A compiled program: a call, its seconds, the seconds of all threads, its temporaries."""

    def __init__(self, lower: Callable[[], Any], run: Callable[[Any], object]) -> None:
        program = lower().compile()
        self.temporaries = program.memory_analysis().temp_size_in_bytes
        self.wall, self.busy = [], []
        self.run = partial(run, program)
        self.run()

    def __call__(self) -> None:
        wall, busy = time.perf_counter(), time.process_time()
        self.run()
        self.wall.append(time.perf_counter() - wall)
        self.busy.append(time.process_time() - busy)


def model(shape: str, work: str) -> tuple[Any, int]:
    """Return (config, rows of a training batch)."""
    import jaxgen

    sizes = dict(SHAPES[shape])
    batch = sizes.pop("batch")
    dtype = work.rpartition("_")[2]
    sizes["dropout"] = 0.1 if work == "train_float32" else 0.0
    return jaxgen.ModelConfig(
        **sizes, compute_dtype="bfloat16" if dtype == "bfloat16" else "float32"
    ), batch


def training(shape: str, work: str) -> Callable[[], Side]:
    """Return what compiles a training step, whose state goes from one program to the next."""
    import jax
    import optax

    import jaxgen
    from jaxgen.ops.cpu import allocator
    from jaxgen.train import partitioner, state

    config, rows = model(shape, work)
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    drawn = np.random.default_rng(0).integers(0, config.V, (rows, config.context + 1))
    tokens = drawn.astype(np.int32)
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    held = [state.train_state(params, optimizer, jax.random.key(1))]
    step = partial(jaxgen.train_step, config=config, optimizer=optimizer, loss=jaxgen.causal_loss)

    def lower() -> Any:
        return partitioner.make_step("jit", step, None, None, rows).lower(held[0], batch)

    def run(program: Any) -> None:
        held[0], _ = jax.block_until_ready(program(held[0], batch))
        allocator.pause(1.0)

    return lambda: Side(lower, run)


def decoding(shape: str, work: str) -> Callable[[], Side]:
    """Return what lays parameters out and compiles the generation of some tokens."""
    import jax
    import jax.numpy as jnp

    import jaxgen
    from jaxgen.models import serving

    config, _ = model(shape, work)
    _, batch, kind = work.split("_")
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    drawn = np.random.default_rng(0).integers(0, config.V, (int(batch), 32))
    prompt, key = jnp.asarray(drawn, jnp.int32), jax.random.key(1)
    # Greedy decoding draws nothing; both are measured.
    nucleus = jaxgen.chain(jaxgen.temperature(0.8), jaxgen.top_p(0.95))
    sample = nucleus if work in ("decode_8_float32", "decode_1_bfloat16") else jaxgen.greedy()
    generate = partial(jaxgen.generate, length=32, sample=sample)

    def make() -> Side:
        laid = serving.ready(params, config, weights="int8" if kind == "int8" else "plain")
        program = jax.jit(generate, static_argnums=1)
        return Side(
            lambda: program.lower(laid, config, prompt, key),
            lambda compiled: jax.block_until_ready(compiled(laid, prompt, key)),
        )

    return make


def compare(shape: str, work: str, twins: list[str], rounds: int) -> dict[str, Any]:
    """Return the figures of each form, and of all, beside those of the program that has them."""
    from jaxgen.ops import cpu
    from jaxgen.ops.cpu import allocator

    allocator.tune()
    make = (training if work.startswith("train") else decoding)(shape, work)
    programs = {ON: make()}
    for twin in twins:
        with cpu.disabled(twin):
            programs[twin] = make()
    if len(twins) == len(WORK[work]):
        with cpu.disabled():
            programs[OFF] = make()
    sides.in_turn(programs, rounds)
    on = programs.pop(ON)
    return {name: figures(on, off) for name, off in programs.items()}


def figures(on: Any, off: Any) -> dict[str, Any]:
    """Return seconds with a form, and how much more time and memory its plain twin takes."""

    def ratio(of: str) -> float:
        return round(min(getattr(off, of)) / min(getattr(on, of)), 3)

    return {
        "seconds": round(min(on.wall), 4),
        "times_as_long": ratio("wall"),
        "times_the_cpu_seconds": ratio("busy"),
        "times_the_memory": round(off.temporaries / max(on.temporaries, 1), 3),
        "rounds": len(on.wall),
    }


class Process:
    """A training process of its own: seconds of a step, CPU seconds, most memory resident."""

    def __init__(self, shape: str, twin: str) -> None:
        self.call = [sys.executable, __file__, "--alone", shape, twin]
        self.wall, self.busy, self.temporaries = [], [], 0

    def __call__(self) -> None:
        done = subprocess.run(self.call, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout)
        self.wall.append(told["wall"])
        self.busy.append(told["busy"])
        self.temporaries = max(self.temporaries, told["peak"])


def alone(shape: str, twin: str) -> dict[str, float]:
    """Return what `Process` reads: some training steps with a form switched off."""
    import contextlib

    from jaxgen.ops import cpu
    from jaxgen.ops.cpu import allocator

    with contextlib.nullcontext() if twin == ON else cpu.disabled(twin):
        allocator.tune()
        step = training(shape, "train_float32")()
        for _ in range(STEPS):
            step()
        wall, busy = statistics.median(step.wall), statistics.median(step.busy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"wall": wall, "busy": busy, "peak": peak}


def processes(shape: str, twins: list[str], rounds: int) -> dict[str, Any]:
    """Return the figures of what acts on a whole process."""
    calls = {name: Process(shape, name) for name in (ON, *twins)}
    sides.in_turn(calls, rounds)
    return {twin: figures(calls[ON], calls[twin]) for twin in twins}


def main() -> None:
    """Measure what is asked for and write it into the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--twins", nargs="+", help="of those that the work can show")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if given.alone:
        print(json.dumps(alone(*given.alone)))
        return
    for shape in given.shapes:
        for work in given.work:
            twins = [twin for twin in WORK[work] if given.twins is None or twin in given.twins]
            run = partial(processes, shape) if work == "process" else partial(compare, shape, work)
            measured = run(twins, given.rounds)
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            found.setdefault(shape, {}).setdefault(work, {}).update(measured)
            found["environment"] = sides.environment()
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(shape, work, json.dumps(measured, indent=1), flush=True)


if __name__ == "__main__":
    main()

"""How much longer than one dense matmul do the matmuls of experts take, however rows are spread?

    python benchmarks/grouped_matmul.py                a minute

As many rows, with one weight for all (dense) and with one for each expert: `grouped_matmul` and
`jax.lax.ragged_dot`, forward and with both gradients. Programs run in turn; ratios are of medians,
of CPU seconds (all threads) and of the clock. Writes results/grouped_matmul.json.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sides
from cpu_twins import Side

from jaxgen.ops.cpu import allocator
from jaxgen.ops.grouped_matmul import grouped_matmul

EXPERTS, INNER, WIDE, ACTIVE = 8, 512, 1024, 2


def loads(rows: int) -> dict[str, list[int]]:
    """Return rows of each expert: drawn evenly, by Zipf's law, and all of one."""
    drawn = np.random.default_rng(0)
    zipf = 1 / np.arange(1, EXPERTS + 1)
    return {
        "even": drawn.multinomial(rows, np.full(EXPERTS, 1 / EXPERTS)).tolist(),
        "zipf": drawn.multinomial(rows, zipf / zipf.sum()).tolist(),
        "one": [0, 0, 0, rows, 0, 0, 0, 0],
    }


def programs(rows: int, load: list[int], gradients: bool) -> dict[str, Side]:
    """Return the compiled sides of one load."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, grad = (
        jax.random.normal(k, (rows, n)) for k, n in zip(keys[:2], (INNER, WIDE), strict=True)
    )
    w, sizes = jax.random.normal(keys[2], (EXPERTS, INNER, WIDE)), jnp.asarray(load)

    def side(multiply: Any) -> Side:
        def run(x: Any, w: Any, sizes: Any, grad: Any) -> Any:
            y, pull = jax.vjp(lambda x, w: multiply(x, w, sizes), x, w)
            return (y, pull(grad)) if gradients else y

        call = lambda program: jax.block_until_ready(program(x, w, sizes, grad))  # noqa: E731
        return Side(lambda: jax.jit(run).lower(x, w, sizes, grad), call)

    return {
        "dense": side(lambda x, w, sizes: x @ w[0]),
        "grouped_matmul": side(partial(grouped_matmul, dtype="float32")),
        "ragged_dot": side(jax.lax.ragged_dot),
    }


def measure(rows: int, load: list[int], gradients: bool, rounds: int) -> dict[str, Any]:
    """Return how many times as long as the dense side the others take."""
    run = programs(rows, load, gradients)
    sides.in_turn(run, rounds)
    busy = {name: statistics.median(side.busy) for name, side in run.items()}
    wall = {name: statistics.median(side.wall) for name, side in run.items()}
    dense = busy.pop("dense")
    ratios = {
        name: {
            "times_the_cpu_seconds": round(seconds / dense, 2),
            "times_as_long": round(wall[name] / wall["dense"], 2),
        }
        for name, seconds in busy.items()
    }
    return {"gradients": gradients, "dense_cpu_seconds": round(dense, 5), **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    sides.on_cpu()
    allocator.tune()
    cases = [
        {"rows": rows, "load": name, **measure(rows, load, gradients, given.rounds)}
        for rows in (ACTIVE * tokens for tokens in given.tokens)
        for name, load in loads(rows).items()
        for gradients in (False, True)
    ]
    about = {"experts": EXPERTS, "shape": [INNER, WIDE], "threads": sides.threads()}
    sides.write("grouped_matmul", about | {"cases": cases, "environment": sides.environment()})


if __name__ == "__main__":
    main()

"""What the machine can do, measured in the same run as what is compared with it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import sides

SIDE, STREAM, TRIES = 2048, 2**26, 5  # a matrix of 16 MiB; 256 MiB to stream through


def measure(dtype: str = "float32") -> dict[str, float]:
    """Return the best matrix products (FLOP/s) and read bandwidth (bytes/s) of all cores.

    By XLA and, where it is installed, by torch: the faster one is the limit. dtype: of what is
    multiplied; sums are float32. Bandwidth is that of a float32 matrix times a vector, which reads
    every weight once, as decoding does.
    """
    square, tall = (SIDE, SIDE, SIDE), (STREAM // 4096, 4096, 1)
    work = {"flops": (2 * SIDE**3, square), "bytes": (4 * STREAM, tall)}
    found = {}
    for name, (amount, sizes) in work.items():
        of = dtype if name == "flops" else "float32"
        rates = {"xla": amount / _best(_xla_product(*sizes, of))}
        product = _torch_product(*sizes, of)
        if product is not None:
            rates["torch"] = amount / _best(product)
        found |= {f"{side}_{name}": rate for side, rate in rates.items()}
        found[name] = max(rates.values())
    return found


def again(most: Mapping[str, float]) -> dict[str, float]:
    """Return the higher one of each rate in `most` and of a new measurement.

    Neighbours of a shared machine take half of its bandwidth for minutes: before and after.
    """
    time.sleep(sides.PAUSE)
    return {name: max(most[name], rate) for name, rate in measure().items()}


def told(most: Mapping[str, float]) -> dict[str, float]:
    """Return rates as results show them: GFLOP/s and GB/s."""
    return {name: round(value / 1e9, 1) for name, value in most.items()}


def apart(dtype: str = "float32") -> dict[str, float]:
    """Return what `measure` does, in a process of its own: none of its memory is left here."""
    call = [sys.executable, __file__, dtype]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _best(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median_low(seconds)


def _xla_product(rows: int, inner: int, columns: int, dtype: str) -> Callable[[], Any]:
    x, y = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    return lambda: product(x, y).block_until_ready()


def _torch_product(rows: int, inner: int, columns: int, dtype: str) -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return None
    shapes = ((rows, inner), (inner, columns), (rows, columns))
    x, y, out = (torch.ones(shape, dtype=getattr(torch, dtype)) for shape in shapes)
    return lambda: torch.mm(x, y, out=out)


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))

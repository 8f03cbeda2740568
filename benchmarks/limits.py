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

TRIES = 5
# By platform: the side of a matrix, and the numbers to stream through; 256 MiB of them on a CPU.
SIZES = {"cpu": (2048, 2**26), "gpu": (8192, 2**30)}


def measure(dtype: str = "float32") -> dict[str, float]:
    """Return the best matrix products (FLOP/s) and read bandwidth (bytes/s) of the device.

    By XLA and, where it is installed, by torch: the faster one is the limit. dtype: of what is
    multiplied; sums are float32. Bandwidth is that of a float32 matrix times a vector, which reads
    every weight once, as decoding does.
    """
    side, stream = SIZES[jax.default_backend()]
    square, tall = (side, side, side), (stream // 4096, 4096, 1)
    work = {"flops": (2 * side**3, square), "bytes": (4 * stream, tall)}
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


def again(most: Mapping[str, float], dtype: str = "float32") -> dict[str, float]:
    """Return the higher one of each rate in `most` and of a new measurement.

    Neighbours of a shared machine take half of its bandwidth for minutes: before and after.
    """
    time.sleep(sides.PAUSE)
    return {name: max(most[name], rate) for name, rate in measure(dtype).items()}


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
    import peers

    where = {"dtype": getattr(torch, dtype), "device": peers.device()}
    shapes = ((rows, inner), (inner, columns), (rows, columns))
    x, y, out = (torch.ones(shape, **where) for shape in shapes)

    def product() -> None:
        torch.mm(x, y, out=out)
        peers.wait()

    return product


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))

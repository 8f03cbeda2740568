"""What the machine can do, measured in the same run as what is compared with it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIDE, STREAM, TRIES = 2048, 2**26, 5  # a matrix of 16 MiB; 256 MiB to stream through


def measure() -> dict[str, float]:
    """Return the best float32 matrix products (FLOP/s) and read bandwidth (bytes/s) of all cores.

    Products by XLA and, where it is installed, by torch: the faster one is the limit.
    """
    found = {"xla_flops": 2 * SIDE**3 / _best(_xla_product())}
    product = _torch_product()
    if product is not None:
        found["torch_flops"] = 2 * SIDE**3 / _best(product)
    found["flops"] = max(found.values())
    found["bytes"] = 4 * STREAM / _best(_reading())
    return found


def _best(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median_low(seconds)


def _xla_product() -> Callable[[], Any]:
    x = jnp.ones((SIDE, SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    return lambda: product(x, x).block_until_ready()


def _torch_product() -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return None
    x, out = torch.ones(SIDE, SIDE), torch.empty(SIDE, SIDE)
    return lambda: torch.mm(x, x, out=out)


def _reading() -> Callable[[], Any]:
    # A matrix times a vector reads every weight once, as decoding does.
    rows = STREAM // 4096
    x, v = jnp.asarray(np.ones((rows, 4096), np.float32)), jnp.ones(4096, jnp.float32)
    product = jax.jit(lambda x, v: jnp.sum(x * v, axis=1))
    return lambda: product(x, v).block_until_ready()


if __name__ == "__main__":
    print(measure())

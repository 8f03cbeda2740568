"""Measured limits of the device: matmuls and memory traffic.

The reference for utilisation in profiles, plans, MFU on a CPU and benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# By platform: the side of square matrices, and float32 numbers to stream through.
SIZES = {"cpu": (2048, 2**26)}
ELSEWHERE = (8192, 2**28)
TRIES = 3


def products(dtype: str) -> float:
    """Return the FLOP/s of a square matmul of this dtype, summed in float32 at least."""
    side, _ = SIZES.get(jax.default_backend(), ELSEWHERE)
    x = jnp.ones((side, side), dtype)
    # With 16-bit sums XLA on a CPU converts the factors to float32.
    sums = jnp.promote_types(dtype, jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=sums))
    return 2.0 * side**3 / best(lambda: product(x).block_until_ready())


def reading() -> float:
    """Return the bytes/s of reading a float32 matrix for a matvec, as decoding reads weights."""
    _, count = SIZES.get(jax.default_backend(), ELSEWHERE)
    w, x = jnp.ones((count // 4096, 4096)), jnp.ones((4096, 1))
    product = jax.jit(jnp.matmul)
    return 4.0 * count / best(lambda: product(w, x).block_until_ready())


def bandwidth() -> float:
    """Return the bytes/s of reading memory and writing as much."""
    _, count = SIZES.get(jax.default_backend(), ELSEWHERE)
    # In place: the pages of a new array would be made and zeroed first.
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    held = [jnp.ones(count // 2, jnp.float32)]

    def move() -> None:
        held[0] = add(held[0]).block_until_ready()

    return 2.0 * held[0].nbytes / best(move)


def best(call: Callable[[], object]) -> float:
    """Return the least seconds of some calls, after one that compiles."""
    call()
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

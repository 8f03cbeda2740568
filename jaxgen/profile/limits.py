"""What the device at hand can do at best, measured: matrix products and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIDES = {"cpu": 1024}  # of the matrices to multiply; elsewhere:
SIDE = 8192
MOVED = {"cpu": 2**25}  # float32 numbers to copy; elsewhere:
MOVE = 2**27
TRIES = 5


def products(dtype: str) -> float:
    """Return the FLOP/s of a square matrix product of this type, summed in float32 at least."""
    side = SIDES.get(jax.default_backend(), SIDE)
    x = jnp.ones((side, side), dtype)
    # With sums of two bytes XLA on a CPU makes float32 of the factors.
    sums = jnp.promote_types(dtype, jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=sums))
    return 2.0 * side**3 / _best(lambda: product(x).block_until_ready())


def bandwidth() -> float:
    """Return the bytes/s of reading memory and writing as much."""
    count = MOVED.get(jax.default_backend(), MOVE)
    # In place: the pages of a new array would be made and zeroed first.
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    held = [jnp.ones(count, jnp.float32)]

    def move() -> None:
        held[0] = add(held[0]).block_until_ready()

    return 2.0 * held[0].nbytes / _best(move)


def _best(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

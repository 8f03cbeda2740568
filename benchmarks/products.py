"""How fast does XLA read weights in products of a few rows, by their dtype and layout?

    python benchmarks/products.py --rows 1 2 --forms float32 int8

Decoding multiplies a few rows with every weight, once a token: what counts is how many weights a
second come from memory. A program multiplies with so many matrices in turn that no cache holds
them; int8 has one scale a column. Each form is a layout and an expression for the compiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import limits
import numpy as np
import sides
from jax import lax

from jaxgen.ops.cpu import allocator

INNER, WIDE, MATRICES, TILE = 768, 3072, 32, 64
F32, BF16, I8 = jnp.float32, jnp.bfloat16, jnp.int8


class Form(NamedTuple):
    """A way to hold the numbers of a [K, N] matrix, and to multiply x [M, K] with it."""

    dtype: Any
    lay: Callable[[np.ndarray], np.ndarray]
    times: Callable[[Any, Any], Any]


def _dot(x, w, left: int, right: int, dtype: Any = F32):
    return lax.dot_general(x, w, (((left,), (right,)), ((), ())), preferred_element_type=dtype)


def _tiles(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(w.reshape(w.shape[0], -1, TILE).swapaxes(0, 1))


def _in_tiles(x, w):
    rows = [jnp.sum(row[None, :, None] * w.astype(F32), axis=1).reshape(-1) for row in x]
    return jnp.stack(rows)


def _in_halves(x, w):
    half = w.shape[0] // 2  # two loops, which run on two threads
    return jnp.concatenate([_in_tiles(x, part) for part in (w[:half], w[half:])], axis=1)


def _by_rows(x, w):
    return jnp.stack([jnp.sum(row[None] * w.astype(F32), axis=1) for row in x])


def _coded(x):
    scale = jnp.max(jnp.abs(x), axis=1, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(I8), scale


def _whole_numbers(x, w, right: int):
    level, scale = _coded(x)
    return _dot(level, w, 1, right, jnp.int32).astype(F32) * scale


def _same(w: np.ndarray) -> np.ndarray:
    return w


def _turned(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(w.T)


def _plain(dtype: Any) -> dict[str, Form]:
    """The forms that convert weights to float32, whatever they are stored in."""
    return {
        "KN": Form(dtype, _same, lambda x, w: _dot(x, w.astype(F32), 1, 0)),
        "KN, matrix first": Form(dtype, _same, lambda x, w: _dot(w.astype(F32), x, 0, 1).T),
        "NK": Form(dtype, _turned, lambda x, w: _dot(x, w.astype(F32), 1, 1)),
        "NK, its transpose": Form(dtype, _turned, lambda x, w: x @ w.astype(F32).T),
        "NK, matrix first": Form(dtype, _turned, lambda x, w: _dot(w.astype(F32), x, 1, 1).T),
        "NK, multiply and sum": Form(dtype, _turned, _by_rows),
        "tiles, multiply and sum": Form(dtype, _tiles, _in_tiles),
        "tiles, in two halves": Form(dtype, _tiles, _in_halves),
    }


FORMS = {
    "float32": _plain(F32),
    "bfloat16": _plain(BF16)
    | {
        "KN, bfloat16 product": Form(BF16, _same, lambda x, w: _dot(x.astype(BF16), w, 1, 0)),
        "NK, bfloat16 product": Form(BF16, _turned, lambda x, w: _dot(x.astype(BF16), w, 1, 1)),
    },
    "int8": _plain(I8)
    | {
        "KN, int8 product": Form(I8, _same, partial(_whole_numbers, right=0)),
        "NK, int8 product": Form(I8, _turned, partial(_whole_numbers, right=1)),
    },
}


def program(form: Form, rows: int) -> tuple[Callable[[], Any], float]:
    """Return the compiled products of all matrices in turn, and the bytes that they read."""
    drawn = np.random.default_rng(0)
    weights = []
    for _ in range(MATRICES):
        w = drawn.integers(-9, 10, (INNER, WIDE))
        weights.append(jnp.asarray(form.lay(w.astype(np.int8))).astype(form.dtype))
    x = jnp.asarray(drawn.standard_normal((rows, INNER)), F32)

    @jax.jit
    def run(x, weights):
        for w in weights:
            y = form.times(x, w)
            x = x + 1e-6 * y[:, :INNER]  # so that each product waits for the one before
        return x

    compiled = run.lower(x, weights).compile()
    size = sum(w.size * w.dtype.itemsize for w in weights)
    return lambda: compiled(x, weights).block_until_ready(), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    allocator.tune()
    threads, most = sides.threads(), limits.measure()
    cases = []
    for rows in given.rows:
        for dtype in given.forms:
            for layout, form in FORMS[dtype].items():
                call, size = program(form, rows)
                call()
                seconds, used = [], []
                for _ in range(given.rounds):
                    begin, before = time.perf_counter(), time.process_time()
                    call()
                    seconds.append(time.perf_counter() - begin)
                    used.append(time.process_time() - before)
                took = statistics.median(seconds)
                case = {"rows": rows, "weights": dtype, "form": layout}
                case |= {
                    "milliseconds": round(1e3 * took, 2),
                    "least": round(1e3 * min(seconds), 2),
                }
                case |= {"cpu_milliseconds": round(1e3 * statistics.median(used), 2)}
                case |= {"gbytes_per_second": round(size / took / 1e9, 1)}
                case |= {"gweights_per_second": round(MATRICES * INNER * WIDE / took / 1e9, 1)}
                print(case, flush=True)
                cases.append(case)
    about = {"matrices": MATRICES, "shape": [INNER, WIDE], "threads": threads}
    about["limits"] = limits.told(most)
    sides.write("products", about | {"cases": cases, "environment": sides.environment()})


if __name__ == "__main__":
    main()

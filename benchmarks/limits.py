"""What the machine can do, measured in the same run as what is compared with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import sides

from jaxgen.profile import limits


def measure(dtype: str = "float32") -> dict[str, float]:
    """Return the best matmuls (FLOP/s) and read bandwidth (bytes/s) of the device.

    By XLA, as `jaxgen.profile.limits` measures them, and, where it is installed, by torch with the
    same sizes: the faster one is the limit. dtype: of what is multiplied; sums are float32.
    """
    side, count = limits.SIZES.get(jax.default_backend(), limits.ELSEWHERE)
    xla = {"flops": limits.products(dtype), "bytes": limits.reading()}
    work = {
        "flops": (2 * side**3, (side, side, side), dtype),
        "bytes": (4 * count, (count // 4096, 4096, 1), "float32"),
    }
    found = {}
    for name, (amount, sizes, of) in work.items():
        rates = {"xla": xla[name]}
        product = _torch_product(*sizes, of)
        if product is not None:
            rates["torch"] = amount / limits.best(product)
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

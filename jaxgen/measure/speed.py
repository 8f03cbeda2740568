"""How fast something jitted is: compiling, first token, tokens after it, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen.errors import ConfigError


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, int | None]:
    """Return (program, seconds to compile, bytes it holds at its peak) for these arguments.

    Bytes are arguments, results and temporaries as XLA plans them; None where it does not tell.
    """
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    plan = program.memory_analysis()
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    held = None if plan is None else int(sum(getattr(plan, name) for name in sizes))
    return program, seconds, held


def seconds(function: Callable[[], Any], repeats: int) -> np.ndarray:
    """Return [repeats] seconds of calls that are waited for, after one that is not counted.

    Raises ConfigError unless repeats >= 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats={repeats} must be at least 1")
    jax.block_until_ready(function())
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - begin)
    return np.asarray(found)

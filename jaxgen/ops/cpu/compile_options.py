"""XLA options for compiling a training step; the plain form is none."""

from __future__ import annotations

from functools import cache

import jax

from jaxgen.ops.cpu import enabled

# Whether a donated buffer must be copied is decided by the live ranges of its regions, as on a TPU,
# not by the order of whole operations.
OPTIONS: dict[str, bool] = {"xla_cpu_copy_insertion_use_region_analysis": True}


def for_platform(platform: str) -> dict[str, bool]:
    """Return the options for a platform: none but for a CPU that is JAX's default here."""
    if platform != jax.default_backend() or not enabled("compile_options", platform):
        return {}
    return {name: value for name, value in OPTIONS.items() if is_known(name, value)}


@cache
def is_known(name: str, value: bool) -> bool:
    """Return whether this XLA takes the option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True

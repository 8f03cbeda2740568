"""What XLA is asked for beyond its defaults when it compiles a training step, by platform."""

from __future__ import annotations

from functools import cache

import jax

# cpu: whether a donated buffer must be copied is decided by when its parts are read and written,
# as on a TPU, not by the order of whole operations.
OPTIONS: dict[str, dict[str, bool]] = {
    "cpu": {"xla_cpu_copy_insertion_use_region_analysis": True},
}


@cache
def options(platform: str) -> dict[str, bool]:
    """Return the compiler options for a platform that is here, less those its XLA doesn't know."""
    if platform != jax.default_backend():
        return {}
    return {name: value for name, value in OPTIONS.get(platform, {}).items() if _known(name, value)}


def _known(name: str, value: bool) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True

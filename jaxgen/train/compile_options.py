"""XLA options for compiling a training step, by platform."""

from __future__ import annotations

from functools import cache

import jax

# cpu: decide whether a donated buffer must be copied by the live ranges of its regions, as on a
# TPU, not by the order of whole operations.
OPTIONS: dict[str, dict[str, bool]] = {
    "cpu": {"xla_cpu_copy_insertion_use_region_analysis": True},
}


@cache
def for_platform(platform: str) -> dict[str, bool]:
    """Return the options for an available platform, without those that its XLA does not know."""
    if platform != jax.default_backend():
        return {}
    return {
        name: value for name, value in OPTIONS.get(platform, {}).items() if _is_known(name, value)
    }


def _is_known(name: str, value: bool) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True

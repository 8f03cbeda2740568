"""The compilers for chips that are not here, by platform; each has NAME, installed, devices."""

from __future__ import annotations

from jaxgen.plan import gpu, tpu

COMPILERS = {"tpu": tpu, "gpu": gpu}


def use_no_device() -> None:
    """Make this process plan on the CPU, before JAX has looked for devices.

    Otherwise JAX would take the accelerators that are here, or, where libtpu is installed without
    any, wait for one.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    # Programs for chips that are not here could be kept, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)

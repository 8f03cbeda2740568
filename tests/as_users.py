"""Programs as users' flags compile them, for tests that read what came of them."""

import os

import jax

OPTIONS: dict = {"xla_backend_optimization_level": 3}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIONS["xla_cpu_use_fusion_emitters"] = True


def compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile without the suite's own flags: those compile faster, and fuse in other ways."""
    return lowered.compile(compiler_options=OPTIONS)

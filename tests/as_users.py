"""Programs as XLA makes them for users, for tests that read what came of them."""

import os

import jax

# LLVM stays as quick as the suite wants it: it comes after all that can be read in a program.
OPTIONS: dict = {}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIONS["xla_cpu_use_fusion_emitters"] = True


def compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile without the suite's own flags: those compile faster, and fuse in other ways."""
    return lowered.compile(compiler_options=OPTIONS)

"""The whole suite runs under jaxtyping and beartype: a wrong shape in a signature is an error."""

import os

# Most of a test's time is compiling; what users run, optimised in full, is tested in tests/run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

hook = install_import_hook("jaxgen", "beartype.beartype")

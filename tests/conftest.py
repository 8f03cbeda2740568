"""The whole suite runs under jaxtyping and beartype: a wrong shape in a signature is an error."""

import os

os.environ.setdefault("XLA_FLAGS", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

hook = install_import_hook("jaxgen", "beartype.beartype")

"""JAX as the command line wants it: compiled programs kept on disk, libraries quiet."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

from jaxgen import files, terminal

WORTH_KEEPING = 0.3  # seconds of compiling: below, reading the program back costs as much
NOISY = ("absl", "jax", "orbax", "grain", "matplotlib")


def prepare_jax(cache: Path) -> None:
    """Set up JAX for this process, before the first use of a device.

    cache: programs are kept in its folder xla/. A cache that can't be written, or is damaged, is
    a warning: everything is compiled anew.
    """
    # Read by XLA and absl when they are loaded: anything but errors is noise to our reader.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.formatwarning = _one_line
    with terminal.waiting("loading JAX"):
        import jax

        from jaxgen.ops.cpu import allocator

        allocator.tune()

    if jax.config.values.get("jax_compilation_cache_dir"):  # the user has chosen another
        return
    folder = cache / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not files.in_bucket(folder):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        reason = error.strerror or error
        print(
            f"jaxgen: warning: {folder} can't be written ({reason}), so every start compiles "
            f"anew; set JAXGEN_CACHE to a folder that can",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    warnings.formatwarning = partial(_one_line, folder=folder)


def _one_line(message, category, filename, lineno, line=None, folder: Path | None = None) -> str:
    text = " ".join(str(message).split())
    if "persistent compilation cache" in text:
        # JAX never replaces a damaged entry, so it would say this at every start.
        text = f"a program in {folder} is damaged and compiled anew; remove that folder ({text})"
    return f"jaxgen: warning: {text if len(text) < 300 else text[:297] + '...'}\n"

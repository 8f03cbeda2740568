"""Several devices made of one CPU, for processes that a test starts."""

import json
import os
import subprocess
import sys
from pathlib import Path


def flags(count: int) -> dict[str, str]:
    """Return the change to an environment that gives JAX so many, with the suite's own flags."""
    own = os.environ["XLA_FLAGS"]
    return {"XLA_FLAGS": f"{own} --xla_force_host_platform_device_count={count}"}


def run(program: Path, count: int, *words: str) -> str:
    """Return what a program prints on so many devices; AssertionError with its errors if it fails.

    A compilation on a busy machine takes its time: it is stopped after 20 minutes.
    """
    done = subprocess.run(
        [sys.executable, str(program), *words],
        env=dict(os.environ) | flags(count),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_checks(program: Path, count: int) -> list:
    """Return the faults that a program of checks prints as its last line, in JSON."""
    return json.loads(run(program, count).splitlines()[-1])

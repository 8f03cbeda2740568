"""Several devices made of one CPU, for processes that a test starts."""

import json
import os
from pathlib import Path

import forked


def flags(count: int) -> dict[str, str]:
    """Return the change to an environment that gives JAX so many, with the suite's own flags."""
    own = os.environ["XLA_FLAGS"]
    return {"XLA_FLAGS": f"{own} --xla_force_host_platform_device_count={count}"}


def run(program: Path, count: int, *words: str) -> str:
    """Return what a program prints on so many devices; AssertionError with it if it fails.

    A compilation on a busy machine takes its time: it is stopped after 20 minutes.
    """
    process = forked.program([program, *words], dict(os.environ) | flags(count))
    code, said = process.end(1200)
    assert code == 0, said
    return said


def run_checks(program: Path, count: int) -> list:
    """Return the faults that a program of checks prints as its last line, in JSON."""
    return json.loads(run(program, count).splitlines()[-1])

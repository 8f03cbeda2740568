"""The processes of `jaxgen verify resume`: started, killed and run.

python -m jaxgen.cli.verify_stage FOLDER whole|killed|restored
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jaxgen
from jaxgen import errors as errors_of
from jaxgen.cli import exits, start
from jaxgen.errors import UserError
from jaxgen.verify import stage
from jaxgen.verify.stage import Name, Row

MODULE = "jaxgen.cli.verify_stage"  # this one, which is __main__ where it is run
LAST_WORDS = 2000  # characters of what a stage said, if it fails


def launch(folder: Path, name: Name, until: Callable[[Row], bool] | None) -> list[Row]:
    """Run a stage as a process of its own; with `until`, kill -9 it once a row is so."""
    words = [sys.executable, "-m", MODULE, str(folder), name]
    root = str(Path(jaxgen.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}
    output, rows = folder / f"{name}.out", folder / f"{name}.jsonl"
    with output.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own module
            words, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        while process.poll() is None:
            if until is not None and any(until(row) for row in _read(rows)):
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    expected = 0 if until is None else -signal.SIGKILL
    if process.returncode != expected:
        raise _failure(name, process.returncode, output.read_text("utf-8", "replace"))
    return _read(rows)


def _read(path: Path) -> list[Row]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _failure(name: str, code: int, output: str) -> Exception:
    """Return the error that a stage ended with, as one of ours if it was."""
    for kind in vars(errors_of).values():
        ours = isinstance(kind, type) and issubclass(kind, UserError) and kind is not UserError
        if ours and kind.exit_code == code and "jaxgen: error: " in output:
            return kind(output.rpartition("jaxgen: error: ")[2].strip())
    return RuntimeError(f"the {name} process ended with {code}: {output[-LAST_WORDS:].strip()}")


if __name__ == "__main__":
    exits.steady_streams()
    try:
        stage.main(sys.argv[1:], start.prepare_jax, os.environ.get("XLA_FLAGS", ""))
    except BaseException as error:
        sys.exit(exits.report(error))

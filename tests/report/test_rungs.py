"""A rung is measured in a process of its own, which ends with the one that asked for it."""

import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path
from jaxgen.report import rungs

def pause(*_):
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    rungs._measure = pause
    rungs.measure_folder(Path("a"), None, Path("b"), 1, (Path("a"), None))
"""


def test_what_measures_a_rung_ends_when_its_parent_is_killed(tmp_path):
    script, told = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script), str(told)])
    until = time.monotonic() + 60
    while not told.exists() or not told.read_text():
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    child = Path("/proc") / told.read_text()
    assert child.exists() and os.getpid() != int(child.name)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while child.exists():
        assert time.monotonic() < until, "an orphan"
        time.sleep(0.1)

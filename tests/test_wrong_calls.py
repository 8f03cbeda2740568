"""Every public callable answers every wrong argument with one line that names it."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "wrong_calls.py"
TRIED = 4650  # wrong calls, which may only become more
UNCLEAR = 0.05  # of them: what a user's own step says of a cache, above all


def test_every_wrong_argument_of_the_public_face_is_named_in_one_line():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    shown = counts.pop("shown")
    print(counts)
    assert not counts["missing"], "a public callable lacks a right call in wrong_calls.py"
    assert not counts["silent"], [one for one in shown if one.startswith("silent")]
    tried = sum(counts[kind] for kind in ("clear", "unclear", "silent", "accepted"))
    assert tried >= TRIED
    assert counts["unclear"] <= UNCLEAR * tried, shown
    assert counts["clear"] >= 0.95 * tried

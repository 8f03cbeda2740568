"""How long does the main job take, with how much memory, and how well does the model end?

    python benchmarks/main_job.py quickstart
    python benchmarks/main_job.py shakespeare_char --text path/to/tinyshakespeare.txt

Runs the command as a user would, in an empty folder with an empty cache, and writes
benchmarks/results/NAME.json: wall seconds, peak resident memory, validation figures, device,
versions and commit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def command(name: str, text: Path | None, folder: Path) -> list[str]:
    """Return the words of the command line that trains `name` in `folder`."""
    start = [sys.executable, "-m", "jaxgen"]
    if name == "quickstart":
        return [*start, "quickstart", "--out", str(folder)]
    if text is None:
        sys.exit(f"{name} needs --text: the path of its corpus")
    return [*start, "train", name, "--out", str(folder), f"data.files=[{text.resolve()}]"]


def measure(name: str, text: Path | None) -> dict:
    """Run the command once and return its figures."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / name
        environment = dict(os.environ) | {"JAXGEN_CACHE": f"{home}/cache"}
        begin = time.monotonic()
        subprocess.run(command(name, text, folder), check=True, cwd=home, env=environment)
        seconds = time.monotonic() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        about = json.loads((folder / "env.json").read_text())
    valid = [row for row in rows if row["kind"] == "valid"][-1]
    speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    return {
        "name": name,
        "seconds": round(seconds, 1),
        "peak_rss_mib": round(peak / 2**20),
        "median_tokens_per_second": round(speeds[len(speeds) // 2]),
        "steps": valid["step"],
        "loss": round(valid["loss"], 4),
        "perplexity": round(valid["perplexity"], 3),
        "bits_per_byte": round(valid["bits_per_byte"], 4),
        "commit": commit,
        "environment": about,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("quickstart", "shakespeare_char"))
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    found = measure(given.name, given.text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))

"""How do generators compare, neural and traditional, in quality, diversity, stability and speed?

    python benchmarks/four_axes.py python-docs=runs/quickstart tinyshakespeare=runs/a,runs/b \\
        multi30k=runs/multi30k_en --prompts 64

Each corpus names finished decoder runs of one text and tokenizer, with commas. The traditional
generators learn from the training text of the first, on the spot; all are measured by `jaxgen
report` on the same held-out text. Writes benchmarks/results/four_axes.json (every figure with its
interval, settings, device, versions, commit) and four_axes.md, the table of the README.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxgen.cli import paths, start
from jaxgen.report import make, table
from jaxgen.report.collect import Plan

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BASELINES = "ngram,hmm,template,maxent,vae"
# Two or three figures of each axis; report.json has them all.
COLUMNS = {
    "bits_per_byte": "bits per byte",
    "mauve": "MAUVE",
    "meteor": "METEOR",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "copied_8": "copied",
    "seq_rep_4": "repeats",
    "calibration_error": "calibration error",
    "prompt_change": "change by prompt",
    "first_token_ms": "first token, ms",
    "tokens_per_second_8": "tokens/s, batch 8",
}


def corpora(words: list[str]) -> dict[str, list[Path]]:
    """Return the runs of each corpus of "name=run,run" words."""
    found = {}
    for word in words:
        name, equals, runs = word.partition("=")
        if not equals or not runs:
            sys.exit(f"{word!r} is no NAME=RUN,RUN; name a corpus and its finished runs")
        found[name] = [Path(run).resolve() for run in runs.split(",")]
    return found


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return a table per corpus, a generator a row; the best of each column is bold."""
    parts = []
    for name, report in found.items():
        text = report["text"]
        parts += [
            f"**{name}**: {text['training_tokens']:,} training tokens, {text['tokens']:,} held-out "
            f"tokens ({text['bytes']:,} bytes, {text['split']})",
            "",
            f"| generator | {' | '.join(COLUMNS.values())} |",
            f"|{'---|' * (len(COLUMNS) + 1)}",
        ]
        better = {key: report["metrics"][key]["better"] for key in COLUMNS}
        best = {key: table.best(report, key, better[key]) for key in COLUMNS}
        for generator, one in report["generators"].items():
            cells = []
            for key in COLUMNS:
                shown = table.show((one["metrics"].get(key) or {}).get("value"))
                cells.append(f"**{shown}**" if best[key] == generator else shown)
            about = "" if generator == make.HELD_OUT else f" ({one['about']})"
            parts.append(f"| {generator}{about} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """Return what is committed of a report: its figures, but no texts."""
    return {k: v for k, v in report.items() if k not in ("schema", "metrics", "samples")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+", metavar="NAME=RUN,RUN")
    parser.add_argument("--baselines", default=BASELINES)
    parser.add_argument("--split", default="valid", choices=("valid", "test"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    plan = Plan(
        prompts=asked.prompts,
        prompt_tokens=asked.prompt_tokens,
        new_tokens=asked.new_tokens,
        seeds=asked.seeds,
    )
    cache = paths.cache()
    start.prepare_jax(cache)
    found = {}
    for name, runs in corpora(asked.corpora).items():
        print(f"== {name}", file=sys.stderr)
        found[name] = make.make(
            runs,
            [kind for kind in asked.baselines.split(",") if kind],
            split=asked.split,
            plan=plan,
            cache=cache,
            say=lambda line: print(line, file=sys.stderr),
        )
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    result = {"commit": commit, "corpora": {name: kept(report) for name, report in found.items()}}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "four_axes.json").write_text(json.dumps(result, indent=1) + "\n")
    (asked.out / "four_axes.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()

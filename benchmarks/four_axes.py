"""How do generators compare, neural and traditional, in quality, diversity, stability and speed?

    python benchmarks/four_axes.py python-docs=runs/quickstart
    python benchmarks/four_axes.py tinyshakespeare=runs/a,runs/b multi30k=runs/c
    python benchmarks/four_axes.py                              draw what there is again

Each corpus names finished decoder runs of one text and tokenizer, with commas. The traditional
generators learn from the training text of the first, on the spot; all are measured by `jaxgen
report` on the same held-out text. Writes benchmarks/results/four_axes.json (every figure with its
interval, settings, device, versions, commit; other corpora stay), four_axes.md, the tables of the
README, and four_axes.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.cli import paths, start
from jaxgen.report import generators, make, table
from jaxgen.report.collect import Plan
from jaxgen.report.metrics import METRICS

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
BETTER = {metric.key: metric.better for metric in METRICS}
DRAWN = {
    "bits_per_byte": ("quality: bits per byte of unseen text (less is better)", "linear"),
    "distinct_2": ("diversity: distinct-2 (dotted: people's own text)", "linear"),
    "seq_rep_4": ("stability: repeated phrases, seq-rep-4 (dotted: people's own text)", "linear"),
    "tokens_per_second_8": ("speed: tokens/s, batch 8, two CPU cores (more is better)", "log"),
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


def best(report: dict[str, Any], key: str) -> str | None:
    """Return the generator with the best figure of a metric."""
    return table.best(report, key, BETTER[key])


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
        winners = {key: best(report, key) for key in COLUMNS}
        for generator, one in report["generators"].items():
            cells = []
            for key in COLUMNS:
                shown = table.show((one["metrics"].get(key) or {}).get("value"))
                cells.append(f"**{shown}**" if winners[key] == generator else shown)
            about = "" if generator == make.HELD_OUT else f" ({one['about']})"
            parts.append(f"| {generator}{about} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw a figure of each axis: a group of bars per corpus, a colour per kind of generator."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(_kind(name) for report in found.values() for name in _made(report)))
    colours = dict(zip(kinds, pyplot.get_cmap("tab10").colors, strict=False))  # pyright: ignore
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7))
    for axis, (key, (title, scale)) in zip(axes.flat, DRAWN.items(), strict=True):
        for place, report in enumerate(found.values()):
            names = _made(report)
            width = 0.8 / len(names)
            for i, name in enumerate(names):
                estimate = report["generators"][name]["metrics"][key]
                x, value = place + (i - (len(names) - 1) / 2) * width, estimate["value"]
                if value is None:
                    continue
                low, high = (value if estimate[k] is None else estimate[k] for k in ("low", "high"))
                error = [[max(value - low, 0)], [max(high - value, 0)]]
                axis.bar(x, value, width, color=colours[_kind(name)], yerr=error, ecolor="#444")
            true = report["generators"][make.HELD_OUT]["metrics"].get(key)
            if true and true["value"] is not None:
                axis.hlines(true["value"], place - 0.45, place + 0.45, color="black", linestyle=":")
        axis.set_xticks(range(len(found)), found)
        axis.set_yscale(scale)
        axis.set_title(title, fontsize=10)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="lower center", ncols=len(kinds), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def _made(report: dict[str, Any]) -> list[str]:
    return [name for name in report["generators"] if name != make.HELD_OUT]


def _kind(name: str) -> str:
    return name if name in generators.BASELINES else "Transformer"


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """Return what is committed of a report: its figures, but no texts."""
    return {k: v for k, v in report.items() if k not in ("schema", "metrics", "samples")}


def commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="*", metavar="NAME=RUN,RUN")
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
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "four_axes.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, runs in corpora(asked.corpora).items():
        print(f"== {name}", file=sys.stderr)
        report = make.make_report(
            runs,
            [kind for kind in asked.baselines.split(",") if kind],
            split=asked.split,
            plan=plan,
            cache=cache,
            say=lambda line: print(line, file=sys.stderr),
        )
        found[name] = {"commit": commit()} | kept(report)
        files.write_json(path, found)
    files.write(asked.out / "four_axes.md", markdown(found))
    draw(found, asked.out / "four_axes.png")
    print(markdown(found))


if __name__ == "__main__":
    main()

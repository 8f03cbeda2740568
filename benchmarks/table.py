"""Fill the tables of benchmarks/README.md from benchmarks/results; no hand writes a figure there.

python benchmarks/table.py            rewrite the lines between the markers
python benchmarks/table.py --check    exit 1 if they are not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEAD = (
    "| what | ours | theirs | times as fast | of the limit | peak memory, ours and theirs |",
    "|---|---|---|---|---|---|",
)
PEERS = {"transformers": "`generate` of transformers"}


def training(found: dict[str, Any]) -> list[str]:
    """Return a row for each shape and PyTorch side of results/train_step.json."""
    rows = []
    for name, shape in found.items():
        ours, kind = shape["jaxgen"], shape["environment"]["devices"]["kind"]
        name = name if kind == "cpu" else f"{name}, {kind}"
        for side in ("torch.compile", "torch eager", "transformers"):
            if side not in shape:
                continue
            theirs, ratio = shape[side], shape[f"jaxgen is faster than {side}"]
            rows.append(
                f"| training step, {name}, against {side} | {_seconds(ours)} | {_seconds(theirs)} "
                f"| **{ratio['of_medians']:.2f}** "
                f"| {ours['share_of_limit']:.0%} of the matrix products "
                f"| {ours['peak_mib']} and {theirs['peak_mib']} MiB |"
            )
    return rows


def decoding(name: str, found: dict[str, Any]) -> list[str]:
    """Return a row for each case and peer of results/decode_SIZE.json."""
    rows = []
    for case in found["cases"]:
        what = f"{case['mode']} decoding, {name}, batch {case['batch']}"
        share, taken = _bandwidth(case), {}
        for side, of in case["seconds"].items():
            step = of["median_seconds"] / case["new_tokens"]
            taken[side] = f"{1e3 * step:.1f} ms a step" if step < 1 else f"{step:.2f} s a step"
        if case["mode"] == "prefill":
            what = f"prefill, {name}, batch {case['batch']}, {case['prompt']} tokens a prompt"
            share = f"{case['share_of_products']:.0%} of the matrix products"
            taken = {side: _seconds(of) for side, of in case["seconds"].items()}
        rows += [
            f"| {what}, against {PEERS.get(side, side)} | {taken['jaxgen']} | {taken[side]} "
            f"| **{ratio['of_medians']:.2f}** | {share} | |"
            for side, ratio in case["times_as_fast_as"].items()
        ]
    return rows


def beams(found: dict[str, Any]) -> list[str]:
    """Return a row for each case and peer of results/beams_t5-small.json."""
    return [
        f"| {found['settings']['beams']} beams, {found['size']}, batch {case['batch']}, "
        f"{case['new_tokens']} tokens, against {side} | {_seconds(case['seconds']['jaxgen'])} "
        f"| {_seconds(case['seconds'][side])} | **{ratio['of_medians']:.2f}** "
        f"| {case['share_of_limit']:.0%} of products and bandwidth | |"
        for case in found["cases"]
        for side, ratio in case["times_as_fast"].items()
    ]


def precision(found: dict[str, Any]) -> list[str]:
    """Return a row for the best precision of each side of results/precision.json."""
    (ours, theirs), taken = found["best"], found["milliseconds_a_token"]
    return [
        f"| one text at the best precision of each side, {found['size']}: {ours} against {theirs} "
        f"| {taken[ours]:.1f} ms a step | {taken[theirs]:.1f} ms a step "
        f"| **{found['times_as_fast']['of_medians']:.2f}** "
        f"| {found['share_of_bandwidth_float32']:.0%} of the bandwidth | |"
    ]


def first_token(found: dict[str, Any]) -> list[str]:
    """Return a row for each case of results/first_token.json that has a peer."""
    named = {"warm": "compiled by an earlier process", "cold": "nothing compiled yet"}
    rows = []
    for case, words in named.items():
        if case not in found["cases"]:
            continue
        one = found["cases"][case]
        ours, theirs = (_seconds(one["seconds"][side]) for side in ("jaxgen", "transformers"))
        rows.append(
            f"| first token of a cold process, {found['size']}, {words}, against transformers "
            f"| {ours} | {theirs} | **{one['times_as_fast']['of_medians']:.2f}** "
            f"| {one['limit']['share']:.0%} of starting Python and reading the weights | |"
        )
    return rows


def checkpoint(found: dict[str, Any]) -> list[str]:
    """Return rows of results/checkpoint.json: standing still, saving, restoring."""
    rows = []
    for size, cases in found.items():
        if save := cases.get("save"):
            seconds, still = save["seconds"], save["stands_still"]["jaxgen"]
            for way in ("torch.save", "torch distributed, in the background"):
                ours, theirs = (_seconds(seconds[f"{side} call"]) for side in ("jaxgen", way))
                rows.append(
                    f"| training stands still for a save, {size}, against {way} | {ours}: "
                    f"{still:.1%} of the save, {save['with_the_next_step']:.1%} with what the next "
                    f"step takes longer | {theirs} "
                    f"| **{save['times_as_short'][way]['of_medians']:.1f}** | | |"
                )
            whole, way = seconds["jaxgen whole"], "torch distributed, in the background"
            rows.append(
                f"| save until it is on the disk, with sha256 of all, {size}, against {way} "
                f"| {_seconds(whole)} | {_seconds(seconds[f'{way} whole'])} "
                f"| **{save['whole_times_as_fast'][way]['of_medians']:.2f}** "
                f"| {save['limit']['share']:.0%} of plain writing | |"
            )
        if restore := cases.get("restore"):
            seconds = restore["seconds"]
            rows += [
                f"| restore, every byte verified, {size}, against {way}, which verifies none "
                f"| {_seconds(seconds['jaxgen full'])} | {_seconds(seconds[way])} | "
                f"**{restore['times_as_fast'][f'jaxgen full against {way}']['of_medians']:.2f}** "
                f"| | |"
                for way in ("torch.save", "torch distributed")
            ]
    return rows


def loader(found: dict[str, Any]) -> list[str]:
    """Return rows of results/loader.json: writing shards, making batches."""
    rows = []
    for case, one in found["cases"].items():
        step = one.get("times_the_training_step")
        if "training_step" in one:
            what, other, most = f"batches of {case}", "torch DataLoader", ""
            most = "" if step is None else f"{step:,.0f} times what the fastest training step needs"
        else:
            what, other, most = f"writing shards, {case}", "the library alone", ""
        ours, theirs = (f"{one['tokens_per_second'][n]:,} tokens/s" for n in ("jaxgen", other))
        ratio = one["times_as_fast"]["of_medians"]
        rows.append(f"| {what}, against {other} | {ours} | {theirs} | **{ratio:.2f}** | {most} | |")
    return rows


# More results/NAME.json, in the table's order, each with what makes rows of it.
OTHERS = {
    "beams_t5-small": beams,
    "precision": precision,
    "first_token": first_token,
    "checkpoint": checkpoint,
    "loader": loader,
}


def _seconds(side: dict[str, Any]) -> str:
    return f"{side['median_seconds']:.3f} s"


def _bandwidth(case: dict[str, Any]) -> str:
    share = case.get("share_of_bandwidth")
    return "" if share is None else f"{share:.0%} of the bandwidth"


def speed() -> str:
    """Return the table of speed."""
    rows = list(HEAD)
    path = RESULTS / "train_step.json"
    if path.exists():
        rows += training(json.loads(path.read_text()))
    for path in sorted(RESULTS.glob("decode_*.json")):
        rows += decoding(path.stem.removeprefix("decode_"), json.loads(path.read_text()))
    for name, make in OTHERS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            rows += make(json.loads(path.read_text()))
    return "\n".join(rows)


def four_axes() -> str:
    """Return the tables that four_axes.py made."""
    return (RESULTS / "four_axes.md").read_text().strip()


def families() -> str:
    """Return the table of results/families.json: how far each family is from transformers."""
    path = RESULTS / "families.json"
    found = json.loads(path.read_text())["families"] if path.exists() else {}
    rows = ["| family | lines | cases | logits | hidden states |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {one['lines']} | {one['cases']} | {one['logits']:.1e} | {one['hidden']:.1e} |"
        for name, one in found.items()
    ]
    return "\n".join(rows)


TABLES = {"speed": speed, "four axes": four_axes, "families": families}


def filled(text: str) -> str:
    """Return the page with its tables replaced; ValueError if it lacks a marker."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"benchmarks/README.md lacks {begin} or {end}")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    path = ROOT / "benchmarks" / "README.md"
    text = path.read_text()
    wanted = filled(text)
    if given.check:
        sys.exit(text != wanted)
    path.write_text(wanted)


if __name__ == "__main__":
    main()

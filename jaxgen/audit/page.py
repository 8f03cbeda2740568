"""The section of a page that shows what a run has memorised."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import DataError

JSON = "audit.json"  # the data of a section, in a folder of a run
STYLE = """
.bits{display:block;max-width:640px}.bits circle{fill-opacity:.45}
.wide{overflow-x:auto}.wide th{color:var(--soft);font-weight:400;text-align:left;
padding:3px 18px 3px 0}.copied{white-space:pre-wrap;overflow-wrap:anywhere;
font:13px/1.5 ui-monospace,monospace;margin:6px 0 14px}.copied i{font-style:normal;
color:var(--soft)}
"""
PLANTED, LEFT_OUT = "#2f6fb0", "#d9722e"
METHODS = {"loss": "loss threshold", "lira": "LiRA, with shadow models"}
KINDS = {"text": "pieces of text", "canaries": "canaries"}


def read_audit(folder: Path) -> dict[str, Any] | None:
    """Return the data of an audit's folder; None where there is none, DataError for other data."""
    path = folder / JSON
    if not path.exists():
        return None
    try:
        with files.refusals(path):
            data = json.loads(path.read_bytes())
        section(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no audit ({type(error).__name__}: {error}); remove it, or write it anew "
            f"with `jaxgen audit`"
        ) from None
    return data


def section(audit: dict[str, Any]) -> list[str]:
    """Return the parts of HTML that show an audit's data."""
    return [
        f"<h2>{escape(audit['run'])}: what it has memorised</h2>",
        f"<p>Attacks on the checkpoint of step {audit['step']}. Intervals are of "
        f"{audit['epsilon']['confidence']:.0%} confidence.</p>",
        *_epsilon(audit["epsilon"]),
        *_exposure(audit["exposure"], audit["canaries"]),
        *_membership(audit["membership"]),
        *_extraction(audit["extraction"]),
    ]


def rows(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """Return an audit as (name, value) rows of words."""
    result = [("epsilon, at most", _upper(audit["epsilon"]))]
    result.append(("epsilon, at least", _lower(audit["epsilon"])))
    if exposure := audit["exposure"]:
        for name in ("planted", "left_out"):
            one = exposure[name]
            if one["number"]:
                result.append(
                    (
                        f"exposure, {name.replace('_', ' ')}",
                        f"{one['mean']:.2f} bits in the mean of {one['number']}, "
                        f"{one['least']:.2f} to {one['largest']:.2f}; {_most_bits(exposure)}",
                    )
                )
    for kind, methods in audit["membership"].items():
        for method, values in methods.items():
            result.append((f"membership of {KINDS[kind]}", f"{METHODS[method]}: {_line(values)}"))
    for name, one in audit["extraction"].items():
        result.append((f"extraction, {name.replace('_', ' ')}", _copied(one)))
    return result


def _most_bits(exposure: dict[str, Any]) -> str:
    promised = exposure.get("promised")  # older audits have none
    mean = "" if promised is None else f", {promised:.2f} in the mean by the accountant"
    return f"{exposure['most']:.2f} at most{mean}"


def _upper(one: dict[str, Any]) -> str:
    if one["upper"] is None:
        return "no limit: the run is not private"
    return f"{one['upper']:.4g} at delta {one['delta']:g}, by the accountant"


def _lower(one: dict[str, Any]) -> str:
    if one["lower"] is None:
        return f"no bound: {one['why_no_bound']}"
    return (
        f"{one['lower']:.4g} at delta {one['delta']:g}, by {one['right']} right of "
        f"{one['guesses']} guesses"
    )


def _line(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{_title(key)} {v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})"
        for key, v in values.items()
    )


def _title(key: str) -> str:
    return "AUC" if key == "auc" else f"TPR at FPR {key.removeprefix('tpr_at_')}"


def _copied(one: dict[str, Any]) -> str:
    if not one["prompts"]:
        return "nothing is asked: no piece is as long as beginning and continuation together"
    return (
        f"{one['verbatim']:.1%} verbatim and {one['near_copies']:.1%} near-copies of "
        f"{one['prompts']} continuations of {one['length']} tokens; copies are "
        f"{one['mean_copy']:.1f} tokens long in the mean, {one['longest_copy']} at most"
    )


def _epsilon(one: dict[str, Any]) -> list[str]:
    return [
        "<h3>Epsilon</h3>",
        _table([("at most", _upper(one)), ("at least", _lower(one))]),
    ]


def _exposure(exposure: dict[str, Any] | None, canaries: dict[str, Any]) -> list[str]:
    if exposure is None:
        return []
    parts = [
        "<h3>Exposure of canaries</h3>",
        f"<p>{canaries['planted']} of {canaries['number']} made-up secrets are in the training "
        f"text, {canaries['repeats']} times each. A canary's exposure is log2 of how far up it "
        f"stands among {exposure['candidates']:,} other secrets: 1.44 bits in the mean for a model "
        f"that has seen none of them, {_most_bits(exposure)}.</p>",
    ]
    most, marks = exposure["most"], []
    for y, (name, color) in enumerate((("planted", PLANTED), ("left_out", LEFT_OUT))):
        one = exposure[name]
        label = name.replace("_", " ")
        mean = f", mean {one['mean']:.2f}" if one["number"] else ""
        marks.append(f"<text x=0 y={22 + 34 * y}>{label}{mean}</text>")
        marks += [
            f"<circle cx={180 + 440 * bits / most:.1f} cy={18 + 34 * y} r=5 fill='{color}'>"
            f"<title>{bits:.2f} bits</title></circle>"
            for bits in exposure["bits"][name]
        ]
    ends = f"<text x=176 y=84>0</text><text x=590 y=84>{most:.1f} bits</text>"
    return [*parts, f"<svg class=bits viewBox='0 0 640 90' role=img>{''.join(marks)}{ends}</svg>"]


def _membership(membership: dict[str, Any]) -> list[str]:
    lines = [
        (f"{KINDS[kind]}, by {METHODS[method]}", _line(values))
        for kind, methods in membership.items()
        for method, values in methods.items()
    ]
    about = (
        "<p>Was a text trained on? An attack that knows nothing has an AUC of 0.5, and catches as "
        "many members (TPR) as it raises false alarms (FPR).</p>"
    )
    return ["<h3>Membership</h3>", about, _table(lines)]


def _extraction(extraction: dict[str, Any]) -> list[str]:
    lines = [
        (f"after {name.replace('_', ' ')} text", _copied(one)) for name, one in extraction.items()
    ]
    examples = extraction["training"].get("examples", [])
    return [
        "<h3>Extraction</h3>",
        "<p>The likeliest continuation of the beginnings of texts, looked up in the training text."
        "</p>",
        _table(lines),
        *(
            f"<p>{one['longest_copy']} tokens copied</p><div class=copied><i>"
            f"{escape(one['prompt'])}</i>{escape(one['text'])}</div>"
            for one in examples
        ),
    ]


def _table(lines: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{escape(a)}<td>{escape(b)}</tr>" for a, b in lines)
    return f"<div class=wide><table>{cells}</table></div>"

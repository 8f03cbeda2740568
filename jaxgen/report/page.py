"""The report as one HTML page that needs nothing else: styles, plots and texts inside."""

from __future__ import annotations

from html import escape
from typing import Any

from jaxgen.audit import page as audit_page
from jaxgen.html_page import document
from jaxgen.report.metrics import METRICS, Metric, left_out
from jaxgen.report.table import AXES, best, show

COLORS = ("#8a8f98", "#2f6fde", "#e07a3f", "#2a9d7c", "#a64ca6", "#c2a02c", "#d1495b", "#4c8fa6")
AXIS = {
    "quality": "How well does it predict text it has not seen, and how near do its continuations "
    "come to the true ones?",
    "diversity": "How varied is what it writes, and how much of it is copied? Near the held-out "
    "text's own value is best.",
    "stability": "Does it loop, does it know what it knows, and what do small changes do to it?",
    "speed": "How long does one wait, and for how much memory? Measured on the machine below.",
}
MARK = {"less": "less is better", "more": "more is better",
        "reference": "near the held-out text is better", "": ""}  # fmt: skip
STYLE = """
.legend{display:flex;flex-wrap:wrap;gap:8px 28px;margin:20px 0}.legend div{display:flex;gap:9px}
.dot{width:13px;height:13px;border-radius:4px;margin-top:6px;flex:none}
.legend small{display:block;color:var(--soft);line-height:1.3}
svg .best{font-weight:700}svg .whisker{stroke:var(--ink);stroke-width:1.3;opacity:.65}
.texts{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:14px}
.texts pre{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,monospace;
margin:6px 0 0}.prompt{color:var(--soft)}.sample{margin-bottom:16px}
"""


def html(report: dict[str, Any]) -> str:
    """Return the page of a report's JSON."""
    text = report["text"]
    parts = [
        "<h1>Text generators, side by side</h1>",
        f"<p>All learned from the same {text['training_tokens']:,} tokens and are measured on the "
        f"same {text['tokens']:,} tokens ({text['bytes']:,} bytes, {text['split']} split) that "
        f"none of them has seen. Bars are values, whiskers 95 % confidence intervals by "
        f"resampling; the best of each is bold.</p>",
        *axes(report),
        _samples(report, _colors(report)),
    ]
    for audit in report["audits"]:
        parts += audit_page.section(audit)
    parts.append(_facts(report))
    return document("jaxgen report", parts, style=STYLE + audit_page.STYLE)


def axes(report: dict[str, Any]) -> list[str]:
    """Return the part of each axis, with bars of every generator, after a legend."""
    color = _colors(report)
    parts = [_legend(report, color)]
    for axis in AXES:
        cards = "".join(_card(report, m, color) for m in METRICS if m.axis == axis)
        parts.append(
            f"<h2>{axis.capitalize()}</h2><p>{AXIS[axis]}</p><div class=grid>{cards}</div>"
        )
    return parts


def _colors(report: dict[str, Any]) -> dict[str, str]:
    names = enumerate(report["generators"])
    return {name: str(COLORS[i % len(COLORS)]) for i, name in names}


def _legend(report: dict[str, Any], color: dict[str, str]) -> str:
    rows = []
    for name, one in report["generators"].items():
        count = one["parameters"]
        size = f", {count:,} numbers" if count else ""
        rows.append(
            f"<div><span class=dot style='background:{color[name]}'></span><span>{escape(name)}"
            f"<small>{escape(one['about'])}{size}</small></span></div>"
        )
    return f"<div class=legend>{''.join(rows)}</div>"


def _card(report: dict[str, Any], metric: Metric, color: dict[str, str]) -> str:
    rows = [
        (name, one["metrics"][metric.key])
        for name, one in report["generators"].items()
        if metric.key in one["metrics"] and one["metrics"][metric.key]["value"] is not None
    ]
    if not rows:
        return ""
    winner = best(report, metric.key, metric.better)
    return (
        f"<div class=card><h3>{escape(metric.title)}<small>{MARK[metric.better]}</small></h3>"
        f"<p>{escape(metric.about)}</p>{_bars(rows, color, winner)}</div>"
    )


def _bars(rows: list, color: dict[str, str], winner: str | None) -> str:
    """Return an SVG of horizontal bars from zero, with whiskers."""
    left, right, high = 96, 250, 22
    top = max(max(abs(e["value"]), abs(e["high"] or 0)) for _, e in rows) or 1.0

    def x(value: float) -> float:
        return left + max(value, 0.0) / top * (right - left)

    parts = [f"<svg viewBox='0 0 330 {high * len(rows) + 4}' role=img>"]
    for i, (name, e) in enumerate(rows):
        y = i * high + 3
        kind = " class=best" if name == winner else ""
        shown = name if len(name) <= 14 else f"{name[:13]}…"
        parts.append(f"<text x=0 y={y + 12}{kind}>{escape(shown)}</text>")
        parts.append(
            f"<rect x={left} y={y} width={max(x(e['value']) - left, 1):.1f} height=15 rx=3 "
            f"fill='{color[name]}'><title>{escape(name)}: {e['value']:.6g}</title></rect>"
        )
        end = e["value"]
        if e["low"] is not None:
            a, b, end = x(e["low"]), x(e["high"]), max(e["high"], end)
            middle = y + 7.5
            parts.append(
                f"<path class=whisker d='M{a:.1f} {middle}H{b:.1f}M{a:.1f} {y + 4}v7"
                f"M{b:.1f} {y + 4}v7'/>"
            )
        parts.append(f"<text x={x(end) + 8:.1f} y={y + 12}{kind}>{show(e['value'])}</text>")
    return "".join([*parts, "</svg>"])


def _samples(report: dict[str, Any], color: dict[str, str]) -> str:
    parts = ["<h2>Texts</h2><p>The same beginnings, gone on from by each (first seed).</p>"]
    for sample in report["samples"]:
        cells = "".join(
            f"<div><h3 style='color:{color[name]};font-size:14px;margin:0'>{escape(name)}</h3>"
            f"<pre>{escape(continuation)}</pre></div>"
            for name, continuation in sample["texts"].items()
        )
        parts.append(
            f"<div class='card sample'><pre class=prompt>{escape(sample['prompt'])} …</pre>"
            f"<div class=texts>{cells}</div></div>"
        )
    return "".join(parts)


def _facts(report: dict[str, Any]) -> str:
    rows = {**report["settings"], **{f"text: {k}": v for k, v in report["text"].items()}}
    rows |= {f"machine: {k}": v for k, v in report["environment"].items()}
    if absent := left_out(report):
        rows["left out"] = absent
    cells = "".join(f"<tr><td>{escape(str(k))}<td>{escape(str(v))}</tr>" for k, v in rows.items())
    return (
        f"<h2>How it was measured</h2><p>The same figures, for programs, are in report.json.</p>"
        f"<table>{cells}</table>"
    )

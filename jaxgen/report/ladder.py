"""A model and its smaller forms, rung by rung: bytes, memory, speed, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from jaxgen import terminal
from jaxgen.html_page import document
from jaxgen.report import page

ABOUT = (
    "Bits per byte with its 95 % interval, by resampling rows of the text; perplexity as its "
    "change against the first rung on the same rows, with the interval of the pairs. Memory is "
    "what a process holds more than before the model was loaded, once it decodes, programs "
    "included, in MiB. A rung marked * is on the Pareto front: no other one is both smaller and "
    "better."
)
COLUMNS = (
    "", "rung", "MiB", "ratio", "memory", "tok/s x1", "x8", "bits/byte", "perplexity, %",
)  # fmt: skip
STYLE = """
.wide{overflow-x:auto}td,th{padding:3px 14px 3px 0;text-align:right}
td:nth-child(2),th:nth-child(2){text-align:left}
"""
WIDTH, HEIGHT, MARGIN = 860, 360, 60


def front(rungs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the rungs of which no other is smaller and predicts better."""

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        sizes = a["bytes"], b["bytes"]
        bits = a["bits_per_byte"]["value"], b["bits_per_byte"]["value"]
        better = sizes[0] < sizes[1] or bits[0] < bits[1]
        return sizes[0] <= sizes[1] and bits[0] <= bits[1] and better

    return [rung["name"] for rung in rungs if not any(beats(other, rung) for other in rungs)]


def rows(report: dict[str, Any], *, ends: bool = True) -> list[tuple[str, ...]]:
    """Return the table's rows in words, COLUMNS first; ends: of intervals, else half of them."""
    first = report["rungs"][0]
    return [COLUMNS] + [
        (
            "*" if rung["name"] in report["front"] else "",
            rung["name"],
            f"{rung['bytes'] / 2**20:,.1f}",
            f"{first['bytes'] / rung['bytes']:.2f}",
            f"{rung['resident'] / 2**20:,.0f}",
            f"{rung['speed']['1']:,.1f}",
            f"{rung['speed']['8']:,.1f}",
            _with_ends(rung["bits_per_byte"], "{:.4f}", 1.0, ends),
            _with_ends(rung["perplexity"], "{:+.2f}", 100.0, ends),
        )
        for rung in report["rungs"]
    ]


def _with_ends(estimate: dict[str, Any], form: str, factor: float, ends: bool) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    text = form.format(value * factor)
    if low is None or low == high:
        return text
    if not ends:
        return f"{text} ±{form.replace('+', '').format((high - low) / 2 * factor)}"
    return f"{text} [{form.format(low * factor)}, {form.format(high * factor)}]"


def text(report: dict[str, Any]) -> str:
    """Return the table as lines; where it is too wide, with half intervals, or a part a rung."""
    columns = terminal.width()
    for ends in (True, False):
        table = rows(report, ends=ends)
        lines = terminal.aligned(table, [i > 1 for i in range(len(COLUMNS))])
        if columns is None or max(map(len, lines)) <= columns:
            break
    else:
        names, *body = table
        parts = [zip(names[2:], cells[2:], strict=True) for cells in body]
        lines = [
            line
            for cells, part in zip(body, parts, strict=True)
            for line in (f"{cells[1]}{' *' * bool(cells[0])}",
                         *(f"  {one}" for one in terminal.aligned([*part], [False, True])))
        ]  # fmt: skip
    note = "" if ends else "\n± is half of the 95 % interval; a wider terminal shows its ends"
    return "\n".join(lines) + note


def html(report: dict[str, Any]) -> str:
    """Return a page that needs nothing else: the plot and the table."""
    head, *body = rows(report)
    cells = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    facts = ", ".join(f"{key}: {value}" for key, value in report["settings"].items())
    parts = [
        f"<h1>{escape(report['model'])}, rung by rung</h1><p>{escape(ABOUT)}</p>",
        _plot(report),
        f"<div class=wide><table><tr>{names}</tr>{cells}</table></div><p>{escape(facts)}</p>",
        *page.axes(report),
    ]
    return document("jaxgen ladder", parts, style=STYLE + page.STYLE)


def _plot(report: dict[str, Any]) -> str:
    """Return an SVG of bits per byte by size, with intervals; the front is joined."""
    rungs = report["rungs"]
    ends = [x for rung in rungs for x in rung["bits_per_byte"].values() if x is not None]
    most, low, high = max(rung["bytes"] for rung in rungs) * 1.15, min(ends), max(ends)
    low, high = low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9)

    def x(size: int | float) -> float:
        return MARGIN + size / most * (WIDTH - 2 * MARGIN)

    def y(bits: int | float) -> float:
        return HEIGHT - MARGIN - (bits - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    on_front = sorted((o for o in rungs if o["name"] in report["front"]), key=lambda o: o["bytes"])
    line = " ".join(f"{x(o['bytes']):.1f},{y(o['bits_per_byte']['value']):.1f}" for o in on_front)
    parts = [
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>",
        f"<polyline points='{line}' fill=none stroke='#2f6fde' stroke-dasharray=4 />",
        f"<text x={MARGIN} y=20>bits per byte (less is better)</text>",
        f"<text x={WIDTH - MARGIN - 60} y={HEIGHT - 12}>MiB on disk</text>",
    ]
    for rung in rungs:
        at, bits = x(rung["bytes"]), rung["bits_per_byte"]
        color = "#2f6fde" if rung["name"] in report["front"] else "#8a8f98"
        if bits["low"] is not None:
            parts.append(
                f"<path d='M{at:.1f} {y(bits['low']):.1f}V{y(bits['high']):.1f}' stroke='{color}'/>"
            )
        height = y(bits["value"])
        size = f"{rung['bytes'] / 2**20:.1f}"
        parts += [
            f"<circle cx={at:.1f} cy={height:.1f} r=5 fill='{color}' />",
            f"<text x={at + 8:.1f} y={height - 6:.1f}>{escape(rung['name'])}</text>",
            f"<text x={at - 12:.1f} y={HEIGHT - MARGIN + 18}>{size}</text>",
        ]
    return "".join([*parts, "</svg>"])

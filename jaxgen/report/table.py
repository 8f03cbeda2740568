"""The report on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgen.report.metrics import METRICS, Metric, left_out

AXES = ("quality", "diversity", "stability", "speed")
UNDEFINED = "-"
GAP = 2  # spaces between columns
HEADING = 14  # characters of a name that fit without folding


def show(number: float | None) -> str:
    """Return a figure in four digits or so; a dash where it is undefined."""
    if number is None:
        return UNDEFINED
    if number and abs(number) < 0.001:
        return f"{number:.1e}"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    digits = 1 if abs(number) >= 100 else 2 if abs(number) >= 10 else 3
    return f"{number:.{digits}f}"


def cell(estimate: dict[str, Any] | None) -> str:
    """Return a value with its interval."""
    if estimate is None or estimate["value"] is None:
        return UNDEFINED
    if estimate["low"] is None:
        return show(estimate["value"])
    return f"{show(estimate['value'])} [{show(estimate['low'])}, {show(estimate['high'])}]"


def half(estimate: dict[str, Any] | None) -> str:
    """Return a value with half the width of its interval."""
    if estimate is None or estimate["value"] is None or estimate["low"] is None:
        return cell(estimate)
    return f"{show(estimate['value'])} ±{show((estimate['high'] - estimate['low']) / 2)}"


def best(report: dict[str, Any], key: str, better: str) -> str | None:
    """Return the generator with the best value of a metric, None where none is defined."""
    values = {
        name: one["metrics"][key]["value"]
        for name, one in report["generators"].items()
        if key in one["metrics"] and one["metrics"][key]["value"] is not None
    }
    true = values.pop(next(iter(report["generators"])), None)  # people's text does not compete
    if better == "reference":
        if true is None:
            return None
        return min(values, key=lambda name: abs(values[name] - true), default=None)
    if len(values) < 2:
        return None
    return (min if better == "less" else max)(values, key=lambda name: values[name])


def show_all(report: dict[str, Any], console: Console) -> None:
    """Print a table for each axis; the best value of a row is bold.

    Metrics without a value are left out. In a table wider than the console, intervals become half
    widths and columns continue in a table below; row names are never cut.
    """
    halved = False
    for axis in AXES:
        metrics = [m for m in METRICS if m.axis == axis and _has_value(report, m)]
        if not metrics:
            continue
        columns = _columns(report, metrics, cell)
        names = max((len(m.title) for m in metrics), default=0)
        blocks = _blocks(columns, console.width - names)
        if len(blocks) > 1:
            halved, columns = True, _columns(report, metrics, half)
            blocks = _blocks(columns, console.width - names)
        for block in blocks:
            console.print(_table(report, metrics, {name: columns[name] for name in block}))
            console.print()
    if halved:
        console.print("± is half of the 95 % interval; a wider terminal shows its ends")
    if absent := left_out(report):
        console.print(Text(f"left out: {absent}"))


def _has_value(report: dict[str, Any], metric: Metric) -> bool:
    return any(cell(one["metrics"].get(metric.key)) != UNDEFINED
               for one in report["generators"].values())  # fmt: skip


def _columns(report: dict[str, Any], metrics: list[Metric], form: Any) -> dict[str, list[str]]:
    """Return generator -> cells, without generators that have no value."""
    columns = {
        name: [form(one["metrics"].get(metric.key)) for metric in metrics]
        for name, one in report["generators"].items()
    }
    return {name: cells for name, cells in columns.items() if set(cells) != {UNDEFINED}}


def _blocks(columns: dict[str, list[str]], room: int) -> list[list[str]]:
    """Return which columns stand side by side in `room`; a long heading is folded."""
    blocks: list[list[str]] = []
    left = -1
    for name, cells in columns.items():
        need = GAP + max(*map(len, cells), min(len(name), HEADING))
        if need > left:
            blocks.append([])
            left = room
        blocks[-1].append(name)
        left -= need
    return blocks


def _table(report: dict[str, Any], metrics: list[Metric], columns: dict[str, list[str]]) -> Table:
    title = metrics[0].axis
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name, cells in columns.items():
        width = max(*map(len, cells), min(len(name), HEADING))
        table.add_column(Text(name), justify="right", overflow="fold", width=width)
    for metric, *cells in zip(metrics, *columns.values(), strict=True):
        winner = best(report, metric.key, metric.better)
        bold = ["bold" if name == winner else "" for name in columns]
        table.add_row(metric.title, *map(Text, cells, bold))
    return table

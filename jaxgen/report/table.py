"""The report on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from jaxgen.report.metrics import METRICS

AXES = ("quality", "diversity", "stability", "speed")


def show(number: float | None) -> str:
    """Return a figure in four digits or so; a dash where it is undefined."""
    if number is None:
        return "-"
    if number and abs(number) < 0.001:
        return f"{number:.1e}"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    digits = 1 if abs(number) >= 100 else 2 if abs(number) >= 10 else 3
    return f"{number:.{digits}f}"


def cell(estimate: dict[str, Any] | None) -> str:
    """Return a value with its interval."""
    if estimate is None or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return show(estimate["value"])
    return f"{show(estimate['value'])} [{show(estimate['low'])}, {show(estimate['high'])}]"


def best(found: dict[str, Any], key: str, better: str) -> str | None:
    """Return the generator with the best value of a metric, None where none is defined."""
    values = {
        name: one["metrics"][key]["value"]
        for name, one in found["generators"].items()
        if key in one["metrics"] and one["metrics"][key]["value"] is not None
    }
    true = values.pop(next(iter(found["generators"])), None)  # people's text does not compete
    if better == "reference":
        if true is None:
            return None
        return min(values, key=lambda name: abs(values[name] - true), default=None)
    if len(values) < 2:
        return None
    return (min if better == "less" else max)(values, key=lambda name: values[name])


def show_all(found: dict[str, Any], console: Console) -> None:
    """Print a table for each axis; the best value of a row is bold."""
    names = list(found["generators"])
    for axis in AXES:
        table = Table(title=axis, title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for metric in METRICS:
            if metric.axis != axis:
                continue
            winner = best(found, metric.key, metric.better)
            row = []
            for name in names:
                value = cell(found["generators"][name]["metrics"].get(metric.key))
                row.append(f"[bold]{value.replace('[', chr(92) + '[')}[/bold]"
                           if name == winner else value.replace("[", "\\["))  # fmt: skip
            table.add_row(metric.title, *row)
        console.print(table)
        console.print()

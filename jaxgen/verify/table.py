"""The table of a proof, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple

from rich.table import Table
from rich.text import Text

from jaxgen import terminal
from jaxgen.verify.resume import Comparison

HEADINGS = ("step", "rows of the text", "random key", "loss", "state", "killed", "restored")


def print_facts(columns: Sequence[Mapping[str, str]], warnings: Sequence[str]) -> None:
    """Print a table with a column for each process, then the warnings."""
    table = Table(box=None, pad_edge=False, show_header=len(columns) > 1, header_style="bold")
    table.add_column("", no_wrap=True)
    for index, _ in enumerate(columns):
        table.add_column(f"process {index}", overflow="fold")
    names = dict.fromkeys(name for column in columns for name in column)
    for name in names:
        # Not markup: a flag may hold brackets.
        table.add_row(name, *(Text(column.get(name, "")) for column in columns))
    console = terminal.console()
    console.print(table)
    for warning in warnings or ["no known trap is set"]:
        words = f"warning: {warning}" if warnings else warning
        console.print(Text(words, "yellow" if warnings else "green"), soft_wrap=True)


def print_resume(proof: Comparison) -> None:
    """Print what each step did, uninterrupted, and whether the others did the same."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for line in proof.steps:
        table.add_row(*map(str, astuple(line)))
    console = terminal.console()
    console.print(table)
    if proof.difference is None:
        last = proof.steps[-1].step
        console.print(
            f"proof: saved at step {proof.saved}, killed after step {proof.saved + 1}, restored in "
            f"another process: the same to step {last}",
            highlight=False,
        )

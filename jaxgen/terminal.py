"""What fits on the terminal, and a sign of life for what takes long."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

FREE = 160  # columns of a table in a file or a pipe
NARROW = 20  # columns that a value has at least
EACH = 1.0  # seconds between signs of life on a terminal
FIRST, THEN = 10.0, 30.0  # and between lines of a file


def width() -> int | None:
    """Return the columns of standard output, or what COLUMNS asks for; None: a file or a pipe."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


def console() -> Any:
    """Return a rich Console on standard output, of this width."""
    from rich.console import Console

    return Console(width=width() or FREE, highlight=False)


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print (name, value) rows as two columns; on a terminal a value goes on below itself."""
    names = max((len(name) for name, _ in rows), default=0)
    columns = width()
    for name, value in rows:
        lines = [value]
        if columns is not None:
            room = max(columns - names - 2, NARROW)
            lines = textwrap.wrap(
                value, room, break_on_hyphens=False, break_long_words=False
            ) or [""]  # fmt: skip
        print(f"{name:<{names}}  {lines[0]}")
        for line in lines[1:]:
            print(f"{'':<{names}}  {line}")


def aligned(rows: Sequence[Sequence[str]], to_right: Sequence[bool]) -> list[str]:
    """Return rows of cells as lines of a table; to_right: which columns end at their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_right, strict=True)
        ).rstrip()
        for row in rows
    ]


def say(line: str, end: str = "\n") -> None:
    """Print a line on standard error at once; where nobody reads it, work goes on all the same."""
    with suppress(OSError, ValueError):
        print(line, end=end, file=sys.stderr, flush=True)


@contextmanager
def ticking(tell: Callable[[float], object], *, terminal: bool) -> Iterator[None]:
    """Call tell(seconds passed) from a thread now and then until the block ends.

    terminal: each second; else after 10 seconds, then every 30.
    """
    done, start = threading.Event(), time.monotonic()

    def work() -> None:
        pause = EACH if terminal else FIRST
        while not done.wait(pause):
            tell(time.monotonic() - start)
            pause = EACH if terminal else THEN

    thread = threading.Thread(target=work, name="jaxgen-ticking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def waiting(text: str, progress: Callable[[], str] | None = None) -> Iterator[None]:
    """Say `text` with the seconds that have passed on standard error, until the block ends.

    progress: what to say between the two.
    """
    live, shown = sys.stderr.isatty(), 0

    def tell(seconds: float) -> None:
        nonlocal shown
        line = f"{text}: {f'{progress()}, ' if progress else ''}{seconds:.0f} s"
        if live:
            line = line[: shutil.get_terminal_size().columns - 1]
            shown = len(line)
        say(f"\r{line}" if live else line, end="" if live else "\n")

    with ticking(tell, terminal=live):
        yield
    if shown:
        say(f"\r{' ' * shown}\r", end="")

"""A bar for the work before the first step; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Bar:
    """Called with (done, total); `close` replaces the bar by a last line."""

    def __init__(self, title: str, live) -> None:
        self.title, self._live, self._task = title, live, None
        self.last: str | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._live is None:
            return
        if self._task is None:
            self._task = self._live.add_task(self.title, total=total)
        self._live.update(self._task, completed=done, total=total)

    def close(self, line: str) -> None:
        """Leave `line` behind, with the time it took."""
        self.last = line


@contextmanager
def bar(title: str, *, silent: bool = False) -> Iterator[Bar]:
    """Yield a Bar while something long is done; afterwards one line says how long it took.

    silent: show nothing, in a process that another one speaks for.
    """
    start = time.monotonic()
    if silent:
        yield Bar(title, None)
        return
    if not sys.stderr.isatty():
        shown = Bar(title, None)
        yield shown
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as live:
            shown = Bar(title, live)
            shown(0, 0)
            yield shown
    line = f"{shown.last or title}: {time.monotonic() - start:.1f} s"
    print(line, file=sys.stderr, flush=True)

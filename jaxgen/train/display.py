"""What training looks like: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Kind = Literal["auto", "live", "notebook", "plain", "off"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where a run stands; losses in nats per token, eta in seconds, None where not yet known."""

    step: int
    total: int
    loss: float | None = None
    reward: float | None = None  # which is shown in the place of a loss
    valid: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    eta: float | None = None
    skipped: int = 0
    epsilon: float | None = None  # of privacy, spent
    cause: str | None = None  # why this very step was skipped

    def facts(self) -> dict[str, str]:
        """Return what is known beyond the step, in words."""
        parts = {
            "loss": ("loss {:.4f}", self.loss if self.reward is None else None),
            "reward": ("reward {:.4f}", self.reward),
            "valid": ("valid {:.4f}", self.valid),
            "epsilon": ("epsilon {:.3g}", self.epsilon),
            "speed": ("{} tok/s", _if_known(short, self.tokens_per_second)),
            "mfu": ("MFU {:.1f}%", None if self.mfu is None else 100 * self.mfu),
            "eta": ("{} left", _if_known(duration, self.eta)),
            "skipped": ("{} skipped", self.skipped or None),
        }
        return {name: form.format(x) for name, (form, x) in parts.items() if x is not None}

    def line(self) -> str:
        """Return the whole reading as one plain line."""
        cause = [] if self.cause is None else [f"is skipped: {self.cause}"]
        return "  ".join([f"step {self.step}/{self.total}", *self.facts().values(), *cause])


@runtime_checkable
class Display(Protocol):
    """Where a run shows itself; a method may raise OSError or ValueError when the place is gone."""

    moves: bool  # whether what is shown can be renewed in its place

    def update(self, reading: Reading) -> None: ...
    def wait(self, what: str, seconds: float) -> None: ...
    def amend(self, reading: Reading) -> None: ...
    def say(self, line: str) -> None: ...
    def text(self, step: int, title: str, text: str) -> None: ...
    def close(self) -> None: ...


def make(kind: Kind, total: int, first: int, stream: Any = None) -> Display:
    """Return the display of a run of steps first..total on `stream` (None: standard output).

    auto: live where the stream is a terminal, notebook where it is one of IPython's, else plain;
    off: nothing is shown.
    """
    stream = stream or sys.stdout
    if kind == "off" or stream is None:  # pythonw and daemons have no standard output
        return Off()
    if kind == "auto":
        kind = "live" if _moves(stream) else "plain"
        # The class of a notebook's stream: ipykernel need not be installed to be asked for it.
        kind = "notebook" if type(stream).__module__.startswith("ipykernel.") else kind
    if kind == "notebook":
        return Notebook(stream)
    return Live(total, first, stream) if kind == "live" else Plain(stream)


def _moves(stream: Any) -> bool:
    if not stream.isatty():
        return False
    from rich.console import Console

    return Console(file=stream).is_interactive  # a dumb terminal can't redraw a line


class Off:
    """Shows nothing."""

    moves = False

    def wait(self, what: str, seconds: float) -> None:
        """Ignore a sign of life."""

    def update(self, reading: Reading) -> None:
        """Ignore a reading."""

    def amend(self, reading: Reading) -> None:
        """Ignore a reading."""

    def say(self, line: str) -> None:
        """Ignore a line."""

    def text(self, step: int, title: str, text: str) -> None:
        """Ignore a text."""

    def close(self) -> None:
        """Do nothing."""


class Plain:
    """One line per reading, for files, pipes and logs of clusters."""

    moves = False

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def update(self, reading: Reading) -> None:
        """Print the reading."""
        self.say(reading.line())

    def wait(self, what: str, seconds: float) -> None:
        """Print that something goes on, and for how long."""
        if seconds:
            self.say(f"{what}: {seconds:.0f} s")

    def amend(self, reading: Reading) -> None:
        """Leave the line that is out as it is."""

    def say(self, line: str) -> None:
        """Print a line at once."""
        self.stream.write(_encodable(line, self.stream) + "\n")
        self.stream.flush()

    def text(self, step: int, title: str, text: str) -> None:
        """Print a sample, every line of it marked as such."""
        body = "\n".join(f"  | {line}" for line in printable(text).split("\n"))
        self.say(f"sample at step {step}: {printable(title)}\n{body}")

    def close(self) -> None:
        """Do nothing: each line is out already."""


NOTEBOOK_BAR = 20  # characters


class Notebook(Plain):
    """A bar and a line that a carriage return renews in their place, below the other lines."""

    moves = True

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.shown = 0  # characters of the line that may be renewed

    def update(self, reading: Reading) -> None:
        """Renew the line."""
        done = NOTEBOOK_BAR * reading.step // max(reading.total, 1)
        self._renew(f"[{'#' * done}{'.' * (NOTEBOOK_BAR - done)}] {reading.line()}")

    def amend(self, reading: Reading) -> None:
        """Renew the line with what is known of the step since."""
        self.update(reading)

    def wait(self, what: str, seconds: float) -> None:
        """Show that something goes on, and for how long."""
        self._renew(f"{what}: {seconds:.0f} s")

    def say(self, line: str) -> None:
        """Print a line in the place of the one that may be renewed."""
        self._renew(line)
        self.close()

    def close(self) -> None:
        """Leave the line as it is."""
        if self.shown:
            self.stream.write("\n")
            self.stream.flush()
        self.shown = 0

    def _renew(self, line: str) -> None:
        first, newline, rest = _encodable(line, self.stream).partition("\n")
        self.stream.write(f"\r{first:<{self.shown}}{newline}{rest}")
        self.stream.flush()
        self.shown = max(len(first), 1)


DISPENSABLE = ("mfu", "speed", "valid", "eta")  # in this order, where a terminal is narrow
BAR = 6  # columns of the bar at least


class Live:
    """One line that stays at the bottom while lines and samples scroll above it."""

    moves = True

    def __init__(self, total: int, first: int, stream: Any) -> None:
        from rich.console import Console
        from rich.live import Live as Region

        class Lasting(Console):
            def on_broken_pipe(self) -> None:
                # rich would end the process; a closed terminal must not end a training run.
                raise BrokenPipeError

        self.console = Lasting(file=stream, highlight=False, emoji=False, markup=False)
        self.reading, self.waiting = Reading(step=first, total=total), ""
        # A refreshing thread of rich could not hand the error of a lost terminal to anybody.
        self.region = Region(console=self.console, auto_refresh=False, get_renderable=self._line)
        self.region.start(refresh=True)

    def update(self, reading: Reading) -> None:
        """Move the bar."""
        if reading.cause is not None:
            self.say(f"step {reading.step}/{reading.total} is skipped: {reading.cause}")
        self.amend(reading)

    def amend(self, reading: Reading) -> None:
        """Show the same step with what is known of it since."""
        self.reading, self.waiting = reading, ""
        self.region.refresh()

    def wait(self, what: str, seconds: float) -> None:
        """Show what goes on, and for how long, in place of the figures."""
        self.waiting = f"{what} {duration(seconds)}" if seconds else what
        self.region.refresh()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(_encodable(line, self.console.file))

    def text(self, step: int, title: str, text: str) -> None:
        """Print a sample above the bar."""
        from rich.padding import Padding
        from rich.rule import Rule
        from rich.text import Text

        head = _encodable(f"step {step} · {printable(title)}", self.console.file)
        self.console.print(Rule(Text(head, style="dim"), style="dim", align="left"))
        body = _encodable(printable(text), self.console.file)
        self.console.print(Padding(Text(body), (0, 0, 1, 2)))

    def close(self) -> None:
        """Leave the bar as it is and give the cursor back."""
        self.region.stop()

    def _line(self) -> Any:
        """Return the line at the bottom, never wider than the terminal."""
        from rich.text import Text

        reading, ascii_only = self.reading, self.console.options.ascii_only
        head, facts = f"{reading.step}/{reading.total}", reading.facts()
        skipped = facts.pop("skipped", "")
        if self.waiting:
            facts = {"waiting": self.waiting}

        def rest() -> tuple[str, int]:
            words = (" | " if ascii_only else " · ").join(facts.values())
            used = sum(len(part) + 1 for part in (head, words, skipped) if part)
            return words, self.console.width - used

        for name in DISPENSABLE:
            if rest()[1] >= BAR:
                break
            facts.pop(name, None)
        words, room = rest()
        done = max(room, 0) * reading.step // max(reading.total, 1)
        full, empty = ("#", "-") if ascii_only else ("━", "─")
        bar = (
            [(full * done, "cyan"), (empty * (room - done), "bright_black")] if room >= BAR else []
        )
        parts = [[(head, "bold")], bar, [(words, "")], [(skipped, "bold red")]]
        shown = [part for part in parts if any(text for text, _ in part)]
        line = Text(no_wrap=True, overflow="crop", end="")
        for number, part in enumerate(shown):
            line.append(" " if number else "")
            for text, style in part:
                line.append(text, style)
        return line


def _if_known(form: Callable[[float], str], number: float | None) -> str | None:
    return None if number is None else form(number)


def printable(text: str) -> str:
    """Return text whose control characters are shown, not obeyed; newlines and tabs stay.

    A sample may hold any bytes the corpus held, escape sequences of terminals among them.
    """
    shown = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    shown |= {0x7F: 0x2421} | dict.fromkeys(range(128, 160), 65533)
    return text.translate(shown)


def short(number: int | float) -> str:
    """Return a count in at most five characters: "950", "12.3k", "1.25M"."""
    if not math.isfinite(number):
        return str(number)
    number = float(f"{number:.3g}") if number >= 1e3 else number  # so that 999.9k becomes 1M
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return a time as people write it: "0:07", "1:02:03", "3d 4:05:06"."""
    total = max(round(seconds), 0)
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if days or hours else f"{minutes}:{rest:02}"
    return f"{days}d {clock}" if days else clock


def _encodable(text: str, stream: Any) -> str:
    # Under LANG=C a stream may hold ASCII only: a lesser text is better than a dead run.
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if isinstance(stream, io.StringIO):
        encoding = "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")

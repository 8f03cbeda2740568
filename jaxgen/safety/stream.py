"""Text in pieces through the rules: what they match is masked, or ends the text.

However a text comes in pieces, the pieces that are shown, joined, are the same. What may still
become a match is held back: at most as many characters as the longest rule matches, not counting
those that are invisible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxgen.safety.machine import Machine, Rules, Step

MASK = "***"
BLOCK = 1024  # characters


class Match(NamedTuple):
    """Where in a text a rule holds: characters [begin, end), the number of the rule, and them."""

    begin: int
    end: int
    rule: int
    text: str


@dataclass(eq=False)
class _Entry:
    """A match that may be: where it begins, the longest so far, and a rule that ends the text."""

    begin: int
    best: Match | None = None
    stop: Match | None = None


class RuleFilter:
    """A text that is shown in pieces; `matches` are those so far, `ended_by` the one that ended it.

    ends: of each rule, whether it ends the text before the match; else it is masked. checks: of
    each rule, whether its match holds. before: text that it goes on from, which is not shown.
    """

    def __init__(
        self,
        machine: Machine,
        ends: Sequence[bool],
        checks: Sequence[Callable[[str], bool] | None],
        before: str = "",
    ) -> None:
        self.machine, self.ends, self.checks = machine, ends, checks
        self.matches: list[Match] = []
        self.ended_by: Match | None = None
        self._state = machine.root
        self._live: list[_Entry] = []
        self._open: list[_Entry] = []  # in order of their beginnings, with those to be told
        self._held, self._base, self._at = "", -len(before), -len(before)
        self._read(before)

    def push(self, piece: str) -> str:
        """Return the text that is safe to show; nothing once a rule has ended it."""
        shown = []
        for begin in range(0, len(piece), BLOCK):  # for what is held is copied
            if self.ended_by is None:
                shown.append(self._read(piece[begin : begin + BLOCK]))
        return "".join(shown)

    def flush(self) -> str:
        """Return the rest of a text that ends here."""
        if self.ended_by is not None:
            return ""
        for group, rules in self.machine.finish(self._state):
            self._consider(self._live[group], self._at, rules)
        self._live, self._state = [], self.machine.root
        self._open = [one for one in self._open if one.best or one.stop]
        return self._settle()

    def _read(self, piece: str) -> str:
        step, shown, self._held = self.machine.step, [], self._held + piece
        for character in piece:
            change = step(self._state, character)
            self._state = change.after
            self._at += 1
            if not (self._live or change.sources or change.now):
                continue
            self._follow(change)
            if self._open and (self._open[0].stop or self._open[0] not in self._live):
                shown.append(self._settle())
                if self.ended_by is not None:
                    return "".join(shown)
        return "".join((*shown, self._settle()))

    def _follow(self, change: Step) -> None:
        groups = [*self._live, _Entry(self._at - 1)]
        for group, rules in change.ended:
            self._consider(groups[group], self._at - 1, rules)
        for group, rules in change.now:
            self._consider(groups[group], self._at, rules)
        self._live = [groups[number] for number in change.sources]
        fresh = groups[-1]
        if fresh in self._live or fresh.best or fresh.stop:
            self._open.append(fresh)
        self._open = [one for one in self._open if one in self._live or one.best or one.stop]

    def _consider(self, entry: _Entry, end: int, rules: Rules) -> None:
        if end <= 0:  # what was there before is not ours to change
            return
        text = self._held[entry.begin - self._base : end - self._base]
        for rule in sorted(rules):
            check = self.checks[rule]
            if check is not None and not check(text):
                continue
            match = Match(entry.begin, end, rule, text)
            if self.ends[rule]:
                entry.stop = entry.stop or match
            elif entry.best is None or end > entry.best.end:
                entry.best = match

    def _settle(self) -> str:
        """Return the text up to where a match may begin, with those masked that are sure."""
        shown = []
        while self._open:
            entry = self._open[0]
            if entry.stop is not None:
                shown.append(self._take(entry.begin))
                self.ended_by, self._held = entry.stop, ""
                self.matches.append(entry.stop)
                self._open = self._live = []
                return "".join(shown)
            if entry in self._live or entry.best is None:
                break
            del self._open[0]
            shown.append(self._mask(entry.best))
        shown.append(self._take(self._open[0].begin if self._open else self._at))
        return "".join(shown)

    def _mask(self, match: Match) -> str:
        """Return the text before a match, and its mask unless it is under the one before."""
        shown = self._take(match.begin) + MASK * (match.begin >= self._base)
        if match.end > self._base:
            self.matches.append(match)
            self._held, self._base = self._held[match.end - self._base :], match.end
        return shown

    def _take(self, end: int) -> str:
        """Return the held text up to a place, which is held no more; none of what was before."""
        end = max(end, self._base)
        taken = self._held[max(-self._base, 0) : max(end - self._base, 0)] if end > 0 else ""
        self._held, self._base = self._held[end - self._base :], end
        return taken


@runtime_checkable
class Filter(Protocol):
    """What a text passes in pieces before it is shown; `ended_by` is set once it has ended it."""

    @property
    def ended_by(self) -> Any: ...
    def push(self, piece: str) -> str: ...
    def flush(self) -> str: ...


class WindowFilter:
    """A text that a classifier reads before it is shown, ended where it is not wanted.

    judge: the probability that a text is not wanted. window: characters that are read at once,
    each half window; None: all of the text, at its end.
    """

    def __init__(
        self, name: str, judge: Callable[[str], float], threshold: float, window: int | None
    ) -> None:
        self.name, self.judge, self.threshold, self.window = name, judge, threshold, window
        self.ended_by: str | None = None
        self._text, self._shown = "", 0

    def push(self, piece: str) -> str:
        """Return the text that has been read, and is wanted."""
        if self.ended_by is not None:
            return ""
        self._text += piece
        shown, half = "", None if self.window is None else max(self.window // 2, 1)
        while half is not None and self.ended_by is None and len(self._text) - self._shown >= half:
            shown += self._read(self._shown + half)
        return shown

    def flush(self) -> str:
        """Return the rest of a text that ends here, if it is wanted."""
        if self.ended_by is not None or self._shown == len(self._text):
            return ""
        return self._read(len(self._text))

    def _read(self, end: int) -> str:
        begin = 0 if self.window is None else max(0, end - self.window)
        if self.judge(self._text[begin:end]) >= self.threshold:
            self.ended_by = self.name
            return ""
        shown, self._shown = self._text[self._shown : end], end
        return shown

r"""Words and regular expressions as one nondeterministic automaton over characters.

An expression has the syntax of `re`, without what needs more than a finite automaton: no
look-around, back-reference, anchor, or possessive repeat. Its longest match is bounded, so that no
more than that is ever held back from a reader. A word ends (and \b lies) also beside scripts that
are written without blanks, as Chinese.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from jaxgen.errors import ConfigError
from jaxgen.safety.folding import Fold, folded, in_word, is_word

LONGEST = 512  # characters of a match
LARGEST = 20_000  # states of one expression
BLANKS = 8  # that may stand for one blank of a word list

_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": is_word,
}
_ADVICE = {
    "ASSERT": "a look-around",
    "ASSERT_NOT": "a look-around",
    "GROUPREF": "a back-reference",
    "GROUPREF_EXISTS": "a back-reference",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive repeat",
    "AT": "an anchor",
}


@dataclass(frozen=True)
class Class:
    """A set of characters: code points in ranges, or of a category.

    caseless: a character is in it in either case.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    categories: tuple[tuple[str, bool], ...] = ()  # (name, whether it is meant)
    negated: bool = False
    caseless: bool = False

    def holds(self, symbol: str) -> bool:
        """Return whether a character is in the set."""
        forms = {symbol, symbol.lower(), symbol.upper()} if self.caseless else {symbol}
        inside = any(
            low <= ord(one) <= high for one in forms if len(one) == 1 for low, high in self.ranges
        ) or any(_CATEGORIES[name](symbol) == meant for name, meant in self.categories)
        return inside != self.negated


@dataclass
class Nfa:
    """States with edges: (class, target) reads a character, (None or a boundary, target) none.

    An edge that reads nothing is free (None), or needs a boundary of words (True), or none (False).
    rule, fold: of each state; final: state -> its rule; starts: the first states, by rule.
    repeats: state -> (place in a repeat, which time): from an earlier time, all is left to match
    that is from a later one.
    """

    reads: list[list[tuple[Class, int]]] = field(default_factory=list)
    jumps: list[list[tuple[bool | None, int]]] = field(default_factory=list)
    rule: list[int] = field(default_factory=list)
    fold: list[str] = field(default_factory=list)
    final: dict[int, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    repeats: dict[int, tuple[tuple[int, int], int]] = field(default_factory=dict)

    def add(self, rule: int, fold: str) -> int:
        """Return a new state."""
        self.reads.append([])
        self.jumps.append([])
        self.rule.append(rule)
        self.fold.append(fold)
        return len(self.reads) - 1


def add_words(nfa: Nfa, rule: int, words: Sequence[str], fold: Fold, *, whole: bool) -> None:
    """Add words to an automaton; whole: not as a part of a longer word.

    Raises ConfigError for a word that folds to nothing.
    """
    start = nfa.add(rule, fold)
    nfa.starts.append(start)
    inner: dict[tuple[int, str], int] = {}  # a tree, so that words share their beginnings
    for word in words:
        text = "".join(map(folded, word)) if fold == "full" else word
        parts = [part for part in re.split(r"(\s+)", text.strip()) if part]
        if not parts:
            raise ConfigError(f"word {word!r} is nothing but blanks, marks or invisible; remove it")
        if len(text) > LONGEST:
            raise ConfigError(f"word {word[:40]!r}... has more than {LONGEST} characters; cut it")
        at = start
        for number, symbol in enumerate(s for p in parts for s in ([" "] if p.isspace() else p)):
            edge = (at, symbol)
            if edge not in inner:
                inner[edge] = nfa.add(rule, fold)
                if number == 0 and whole and in_word(symbol):
                    first = nfa.add(rule, fold)
                    nfa.jumps[at].append((True, first))
                    nfa.reads[first].append((_one(symbol), inner[edge]))
                elif symbol == " ":
                    _blanks(nfa, at, inner[edge])
                else:
                    nfa.reads[at].append((_one(symbol), inner[edge]))
            at = inner[edge]
        end = nfa.add(rule, fold)
        nfa.final[end] = rule
        nfa.jumps[at].append((True if whole and in_word(text.strip()[-1]) else None, end))


def add_expression(nfa: Nfa, rule: int, pattern: str, fold: Fold) -> None:
    """Add a regular expression to an automaton; ConfigError for one that can't be followed."""
    shown = f"regex {pattern[:60]!r}"
    try:
        # The parser of `re`: what it reads is what `re` means.
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # [[:alpha:]] is no class of `re`
            parsed = import_module("re._parser").parse(pattern)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise ConfigError(f"{shown} can't be compiled: {error}; correct it") from None
    shortest, longest = parsed.getwidth()
    if shortest == 0:
        raise ConfigError(f"{shown} matches the empty text, and so every text; let it need a sign")
    if longest > LONGEST:
        raise ConfigError(
            f"{shown} has matches of more than {LONGEST} characters, which would be held back; "
            f"bound its repeats, as in {{1,64}} for + or *"
        )
    builder = _Builder(nfa, rule, fold, shown, bool(parsed.state.flags & re.IGNORECASE),
                       bool(parsed.state.flags & re.DOTALL))  # fmt: skip
    start = builder.add()
    end = builder.sequence(parsed, start)
    nfa.starts.append(start)
    nfa.final[end] = rule
    if all(builder.matches_alone(start, one, end) for one in "aZ0 .é中"):
        raise ConfigError(f"{shown} matches any one character, so that nothing can be said; "
                          f"narrow it")  # fmt: skip


def _one(symbol: str) -> Class:
    return Class(((ord(symbol), ord(symbol)),))


def _blanks(nfa: Nfa, start: int, end: int) -> None:
    blank = Class(categories=(("SPACE", True),))
    for _ in range(BLANKS):
        nfa.reads[start].append((blank, end))
        more = nfa.add(nfa.rule[start], nfa.fold[start])
        nfa.reads[start].append((blank, more))
        start = more


@dataclass
class _Builder:
    nfa: Nfa
    rule: int
    fold: str
    shown: str
    caseless: bool
    dotall: bool
    size: int = 0

    def add(self) -> int:
        self.size += 1
        if self.size > LARGEST:
            raise ConfigError(f"{self.shown} has more than {LARGEST} states; lower its repeats")
        return self.nfa.add(self.rule, self.fold)

    def sequence(self, items: Any, at: int) -> int:
        for operation, value in items:
            at = self.item(str(operation), value, at)
        return at

    def item(self, operation: str, value: Any, at: int) -> int:
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            after = self.add()
            self.nfa.reads[at].append((self.class_of(operation, value), after))
            return after
        if operation == "AT" and str(value) in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            after = self.add()
            self.nfa.jumps[at].append((str(value) == "AT_BOUNDARY", after))
            return after
        if operation == "SUBPATTERN":
            _, more, less, inner = value
            before, self.caseless = self.caseless, (
                (self.caseless or bool(more & re.IGNORECASE)) and not less & re.IGNORECASE
            )  # fmt: skip
            after = self.sequence(inner, at)
            self.caseless = before
            return after
        if operation == "BRANCH":
            after = self.add()
            for branch in value[1]:
                first = self.add()
                self.nfa.jumps[at].append((None, first))
                self.nfa.jumps[self.sequence(branch, first)].append((None, after))
            return after
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            return self.repeat(least, most, inner, at)
        kind = _ADVICE.get(operation, operation)
        raise ConfigError(rf"{self.shown} has {kind}, which can't be followed; \b is known")

    def repeat(self, least: int, most: int, inner: Any, at: int) -> int:
        for _ in range(least):
            at = self.sequence(inner, at)
        after = self.add()
        self.nfa.jumps[at].append((None, after))
        for time in range(most - least):
            begin = len(self.nfa.reads)
            at = self.sequence(inner, at)
            self.nfa.jumps[at].append((None, after))
            for place, state in enumerate(range(begin, len(self.nfa.reads))):
                self.nfa.repeats.setdefault(state, ((after, place), time))
        return after

    def class_of(self, operation: str, value: Any) -> Class:
        if operation == "ANY":
            return Class(((10, 10),) if not self.dotall else (), negated=True)
        items = value if operation == "IN" else [(operation.removeprefix("NOT_"), value)]
        ranges, categories, negated = [], [], operation == "NOT_LITERAL"
        for kind, what in items:
            if str(kind) == "NEGATE":
                negated = True
            elif str(kind) == "LITERAL":
                ranges.append((what, what))
            elif str(kind) == "RANGE":
                ranges.append(tuple(what))
            else:
                name = str(what).removeprefix("CATEGORY_")
                categories.append((name.removeprefix("NOT_"), not name.startswith("NOT_")))
        if self.fold == "full" and not negated:  # its literals fold as words do
            plain = [folded(chr(low)) for low, high in ranges if low == high]
            ranges += [(ord(one), ord(one)) for one in plain if len(one) == 1]
        caseless = self.caseless or self.fold == "full"
        return Class(tuple(ranges), tuple(categories), negated, caseless)

    def matches_alone(self, start: int, symbol: str, end: int) -> bool:
        """Return whether a single character matches, wherever it stands."""
        return end in self.closed({
            after
            for state in self.closed({start})
            for read, after in self.nfa.reads[state]
            if read.holds(symbol)
        })  # fmt: skip

    def closed(self, states: set[int]) -> set[int]:
        todo = list(states)
        while todo:
            new = [to for kind, to in self.nfa.jumps[todo.pop()] if kind is None]
            todo += [to for to in new if to not in states]
            states |= set(new)
        return states

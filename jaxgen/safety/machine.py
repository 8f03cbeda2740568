"""The rules as a deterministic automaton over characters, made as far as a text needs it.

A state is the set of places in the rules where a match may be that began at an earlier character,
grouped by that character, the oldest first: so a match knows where it began, and what has to be
held back is what the oldest group began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxgen.safety.expressions import Nfa
from jaxgen.safety.folding import FOLDS, in_word, readings

Thread = tuple[int, bool]  # a state of the rules, and whether the character before is of a word
Rules = frozenset[int]
NOTHING: frozenset = frozenset()
MOST = 200_000  # steps that are remembered


class State(NamedTuple):
    """groups: threads by where they began; before: by folding that rules have, whether the last
    character may be of a word, or not."""

    groups: tuple[frozenset[Thread], ...]
    before: tuple[frozenset[bool], ...]


class Step(NamedTuple):
    """What a character changes.

    after: the next state's number. sources: of each group of it, its number before; a group that
    begins here has the number behind them. ended, now: (group before, rules) of matches that end
    before the character, and with it.
    """

    after: int
    sources: tuple[int, ...]
    ended: tuple[tuple[int, Rules], ...]
    now: tuple[tuple[int, Rules], ...]


class _Advance(NamedTuple):
    threads: frozenset[Thread]
    ended: Rules
    now: Rules


class Machine:
    """An automaton that is determined while it is used.

    verified: rules whose matches are checked again, so that each beginning counts.
    """

    def __init__(self, nfa: Nfa, verified: frozenset[int] = frozenset()) -> None:
        self.nfa, self.verified = nfa, verified
        self.states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._steps: dict[tuple[int, str], Step] = {}
        self._advances: dict[tuple[Thread, str], _Advance] = {}
        self._begun: dict[tuple[tuple[frozenset[bool], ...], str], _Advance] = {}
        self._words_of: dict[str, tuple[frozenset[bool], ...]] = {}
        self._folds: tuple[str, ...] = tuple(fold for fold in FOLDS if fold in nfa.fold)
        self._bounded = _bounded(nfa)
        self.root = self._number(State((), (frozenset((False,)),) * len(self._folds)))

    def step(self, state: int, character: str) -> Step:
        """Return what a character changes in a state."""
        known = self._steps.get((state, character))
        if known is None:
            if len(self._steps) >= MOST:
                self._steps.clear()
            known = self._steps[state, character] = self._step(self.states[state], character)
        return known

    def finish(self, state: int) -> tuple[tuple[int, Rules], ...]:
        """Return (group, rules) of the matches that the end of the text completes."""
        ends: dict[str, frozenset[bool]] = dict.fromkeys(FOLDS, frozenset((False,)))
        matches = []
        for number, group in enumerate(self.states[state].groups):
            closed = frozenset().union(*(self._crossed(thread, ends) for thread in group))
            if rules := self._finals(closed):
                matches.append((number, rules))
        return tuple(matches)

    def _number(self, state: State) -> int:
        number = self._numbers.setdefault(state, len(self.states))
        if number == len(self.states):
            self.states.append(state)
        return number

    def blocked(self, state: int, character: str) -> int | None:
        """Return the number of the next state where beginnings don't count; None after a match."""
        groups, before = self.states[state]
        fresh = self._fresh(before, character)
        if fresh.now:
            return None
        threads = set(fresh.threads)
        for thread in groups[0] if groups else ():
            part = self._advance(thread, character)
            if part.ended or part.now:
                return None
            threads |= part.threads
        groups = (self._pruned(frozenset(threads)),) if threads else ()
        return self._number(State(groups, self._words_after(before, character)))

    def _step(self, state: State, character: str) -> Step:
        groups, sources, ended, now, seen = [], [], [], [], set[Thread]()
        for number, group in enumerate((*state.groups, None)):
            if group is None:
                parts = [self._fresh(state.before, character)]
            else:
                parts = [self._advance(thread, character) for thread in group]
            if rules := NOTHING.union(*(part.ended for part in parts)):
                ended.append((number, rules))
            if rules := NOTHING.union(*(part.now for part in parts)):
                now.append((number, rules))
            threads = NOTHING.union(*(part.threads for part in parts)) - seen
            # An older match goes on as this one does; but it may fail where it is checked again.
            seen |= {one for one in threads if self.nfa.rule[one[0]] not in self.verified}
            if threads:
                groups.append(self._pruned(threads))
                sources.append(number)
        after = State(tuple(groups), self._words_after(state.before, character))
        return Step(self._number(after), tuple(sources), tuple(ended), tuple(now))

    def _words_after(
        self, before: tuple[frozenset[bool], ...], character: str
    ) -> tuple[frozenset[bool], ...]:
        known = self._words_of.get(character)
        if known is None:
            known = tuple(_words(readings(character, fold)) for fold in self._folds)
            self._words_of[character] = known
        return (
            tuple(words or old for words, old in zip(known, before, strict=True))
            if NOTHING in known
            else known
        )

    def _fresh(self, before: tuple[frozenset[bool], ...], character: str) -> _Advance:
        """Return what begins with a character."""
        known = self._begun.get((before, character))
        if known is None:
            parts = [
                self._find_advance((start, word), character, True)
                for start in self.nfa.starts
                for word in before[self._folds.index(self.nfa.fold[start])]
            ]
            known = _Advance(*(NOTHING.union(*several) for several in zip(*parts, strict=True)))
            self._begun[before, character] = known
        return known

    def _pruned(self, threads: frozenset[Thread]) -> frozenset[Thread]:
        """Return threads without those from which no more can match than from another one."""
        repeats, first = self.nfa.repeats, {}
        for state, before in threads:
            if state in repeats:
                key, time = repeats[state]
                first[key, before] = min(time, first.get((key, before), time))
        if not first:
            return threads
        return frozenset(
            (state, before)
            for state, before in threads
            if state not in repeats or repeats[state][1] == first[repeats[state][0], before]
        )

    def _advance(self, thread: Thread, character: str) -> _Advance:
        known = self._advances.get((thread, character))
        if known is None:
            if len(self._advances) >= MOST:
                self._advances.clear()
            known = self._find_advance(thread, character, False)
            self._advances[thread, character] = known
        return known

    def _find_advance(self, thread: Thread, character: str, begins: bool) -> _Advance:
        fold = self.nfa.fold[thread[0]]
        likely = readings(character, fold)
        following: dict[str, frozenset[bool]] = {fold: _words(likely)}
        crossed = self._crossed(thread, following)
        after: set[Thread] = set()
        for reading in likely:
            if not reading:
                after |= NOTHING if begins else {thread}
                continue
            current = crossed
            for place, symbol in enumerate(reading):
                current = self._read(current, symbol)
                if place + 1 < len(reading):
                    following = {fold: frozenset((in_word(reading[place + 1]),))}
                    current = NOTHING.union(*(self._crossed(one, following) for one in current))
            after |= current
        now = self._finals(after)
        return _Advance(
            frozenset(one for one in after if one[0] not in self.nfa.final),
            self._finals(crossed),
            now,
        )

    def _read(self, threads: frozenset[Thread] | set[Thread], symbol: str) -> frozenset[Thread]:
        word = in_word(symbol)
        reached = {
            (target, word)
            for state, _ in threads
            for read, target in self.nfa.reads[state]
            if read.holds(symbol)
        }
        return NOTHING.union(*(self._crossed(one, {}) for one in reached))

    def _crossed(
        self, thread: Thread, following: Mapping[str, frozenset[bool]]
    ) -> frozenset[Thread]:
        """Return the threads reached without a character.

        following: by folding, whether the next character may be of a word; without it no
        boundary is crossed.
        """
        reached, todo, before = {thread}, [thread[0]], thread[1]
        while todo:
            state = todo.pop()
            words = following.get(self.nfa.fold[state], NOTHING)
            for kind, target in self.nfa.jumps[state]:
                passes = kind is None or any((word != before) == kind for word in words)
                if passes and (target, before) not in reached:
                    reached.add((target, before))
                    todo.append(target)
        # What came before matters only where a boundary may follow.
        return frozenset((state, before and state in self._bounded) for state, before in reached)

    def _finals(self, threads: frozenset[Thread] | set[Thread]) -> Rules:
        return frozenset(self.nfa.final[s] for s, _ in threads if s in self.nfa.final)


def _bounded(nfa: Nfa) -> frozenset[int]:
    """Return the states that a boundary may follow without a character."""
    bounded = {s for s, jumps in enumerate(nfa.jumps) if any(kind is not None for kind, _ in jumps)}
    while more := {
        s
        for s, jumps in enumerate(nfa.jumps)
        if s not in bounded and any(t in bounded for _, t in jumps)
    }:
        bounded |= more
    return frozenset(bounded)


def _words(likely: frozenset[str]) -> frozenset[bool]:
    return frozenset(in_word(reading[0]) for reading in likely if reading)

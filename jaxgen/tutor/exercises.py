"""Exercises: what is asked, the rule that checks an answer, and hints, read from a YAML file."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import settings, settings_yaml
from jaxgen.errors import ConfigError, nearest
from jaxgen.tutor import limited

RULES = ("number", "pattern", "test")
_NUMBER = re.compile(
    r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?:\s*/\s*(\d+\.?\d*))?\s*(.*)", re.IGNORECASE
)


class Verdict(NamedTuple):
    """Whether an answer is right, and what to tell; right is None for what is no answer yet."""

    right: bool | None
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise, with one of the rules `number`, `pattern` and `test`.

    Attributes:
        name: what the learner's record calls it.
        ask: the question.
        number: the answer, in `unit` if there is one.
        tolerance: how far an answer may be from it: a number, or a share such as "5%".
        unit, units: the unit an answer needs, and others with their size in it: {cm: 0.01}.
        pattern: a regular expression that the whole answer matches.
        test: Python that runs after the answer, and asserts.
        seconds, memory: which a test may take; memory in MiB.
        hints: told one after the other.
        explain: told after a right answer.
    """

    name: str
    ask: str
    number: float | None = None
    tolerance: float | str = 0.0
    unit: str = ""
    units: dict[str, float] = field(default_factory=dict)
    pattern: str | None = None
    test: str | None = None
    seconds: float = 5.0
    memory: int = 1024
    hints: tuple[str, ...] = ()
    explain: str = ""

    def __post_init__(self) -> None:
        rules = [rule for rule in RULES if getattr(self, rule) is not None]
        if len(rules) != 1:
            has = " and ".join(rules) or "none"
            raise ConfigError(f"it has {has} of number, pattern and test; give one of them")
        if self.number is None and (self.unit or self.units or self.tolerance):
            raise ConfigError(f"unit, units and tolerance need number, not {rules[0]}; remove them")
        if self.units and not self.unit:
            raise ConfigError("units says how large others are in unit; give unit, too")
        if wrong := [unit for unit, size in self.units.items() if size <= 0]:
            raise ConfigError(f"units.{wrong[0]}={self.units[wrong[0]]} must be above 0")
        if self.seconds <= 0 or self.memory < 64:
            raise ConfigError(
                f"seconds={self.seconds} must be above 0 and memory={self.memory} at least 64 MiB"
            )
        self.distance()
        try:
            re.compile(self.pattern or "")
            ast.parse(self.test or "")
        except (re.error, SyntaxError, ValueError) as error:
            what = "pattern is no regular expression" if self.pattern else "test is no Python"
            raise ConfigError(f"{what}: {error}") from None

    def distance(self) -> float:
        """Return how far an answer may be from the number."""
        match = re.fullmatch(r"(\d+\.?\d*(?:e-?\d+)?)( ?%)?", str(self.tolerance))
        if match is None:
            raise ConfigError(f"tolerance={self.tolerance!r} must be as 0.1 or 5%")
        share = abs(self.number or 0.0) / 100 if match[2] else 1.0
        return float(match[1]) * share + 1e-9 * abs(self.number or 0.0)

    def check(self, answer: str) -> Verdict:
        """Return whether an answer is right."""
        if self.number is not None:
            return self._check_number(answer.strip().replace("−", "-"))
        code, test = answer, self.test or ""
        if self.pattern is not None:  # in that process, too: some expressions take for ever
            pattern, answer = repr(self.pattern), repr(answer.strip())
            code, test = "", f"import re\nassert re.fullmatch({pattern}, {answer})"
        passed, about = limited.run(code, test, self.seconds, self.memory)
        return Verdict(passed, "" if self.pattern and "Assertion" in about else about)

    def _check_number(self, text: str) -> Verdict:
        match, example = _NUMBER.fullmatch(text), f"12.5 {self.unit}".strip()
        if match is None or "," in text or float(match[2] or 1) == 0:
            return Verdict(None, f"Write a number with a decimal point, as in {example}.")
        unit, sizes = match[3].strip(), {self.unit: 1.0, **self.units}
        if bool(unit) != bool(self.unit):
            return Verdict(None, f"Write {'the' if self.unit else 'no'} unit, as in {example}.")
        if unit not in sizes:
            return Verdict(False, f"The unit {unit} does not fit; {self.unit} would.")
        value = float(match[1]) / float(match[2] or 1) * sizes[unit]
        return Verdict(abs(value - (self.number or 0.0)) <= self.distance())


def read_exercises(path: Path) -> list[Exercise]:
    """Return the exercises of a file; ConfigError names the file, the exercise and the remedy."""
    top = settings_yaml.read_yaml(path, "exercise file")
    if unknown := [key for key in top if key != "exercises"]:
        hint = nearest(unknown[0], ["exercises"])
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}{hint}; it holds `exercises:` alone")
    rows = top.get("exercises")
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: exercises must be a list; write `exercises:` and `- name: ...`")
    exercises = [_exercise(row, f"{path}: exercises[{n}]") for n, row in enumerate(rows)]
    names = [one.name for one in exercises]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: two exercises are called {twice[0]!r}; rename one")
    return exercises


def _exercise(row: Any, where: str) -> Exercise:
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is {row!r:.40}; write `- name: ...` and its keys below")
    where += f" ({row['name']})" if isinstance(row.get("name"), str) else ""
    for key in ("name", "ask"):
        if not (isinstance(row.get(key), str) and row[key].strip()):
            raise ConfigError(
                f"{where}: {key}={row.get(key)!r:.40} must be a text; write {key}: ..."
            )
    try:
        return settings.build(Exercise, row)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None

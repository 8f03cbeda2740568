"""`jaxgen tutor`."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxgen import files, settings, terminal
from jaxgen.cli import inputs, paths, start
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.text.request import Generation
from jaxgen.tutor.exercises import Exercise, read_exercises

WIDEST = 88  # columns of running text
MAX_RECORD = 1 << 22
COMMANDS = {
    "/hint": "the next hint",
    "/file NAME": "the code in a file, as the answer",
    "/skip": "leave this exercise for later",
    "/quit": "end; the same command goes on here",
    "/help": "these commands",
}
Phrase = Callable[[Exercise, str, str], str]  # (exercise, last answer, hint) -> help in words


@dataclass
class Progress:
    """What a learner did of an exercise, which is known by the digest of its text."""

    exercise: str
    attempts: int = 0
    hints: int = 0
    solved: bool = False


def tutor(
    exercises: Annotated[str, Parameter(help="a YAML file, as the one below")],
    model: Annotated[
        str | None, Parameter(help="puts hints in its own words; it judges no answer")
    ] = None,
    /,
    *,
    record: Annotated[
        str | None, Parameter(help="the learner's file; by default NAME.record.json beside it")
    ] = None,
) -> None:
    """Ask exercises, check the answers by rules, and remember what is solved.

    A number may be off by a tolerance and may need a unit; a pattern must match the
    whole answer; a test is Python that runs after the learner's, in a process with
    limits on time, memory and output, and without network. That holds mistakes, not
    malice. Code ends with a line that holds a dot alone.

    For example:
        jaxgen tutor algebra.yaml
        jaxgen tutor algebra.yaml models/qwen --record anna.json

    where algebra.yaml is:
        exercises:
          - name: fall
            ask: How far does a stone fall in 2 s?
            number: 19.6
            tolerance: 1%
            unit: m
            units: {cm: 0.01}
            hints: [The way is g t^2 / 2., "g is 9.81 m/s^2."]
          - name: vowel
            ask: Name a vowel.
            pattern: "(?i)[aeiou]"
          - name: double
            ask: Write double(x).
            test: assert double(4) == 8
    """
    path = files.to_path(exercises)
    rows = read_exercises(path)
    keep = files.to_path(record) if record else path.with_name(f"{path.stem}.record.json")
    known = _read_record(keep, rows)
    phrase = None if model is None else _phrasing(model)
    left = [row for row in rows if not known[row.name].solved]
    if len(left) < len(rows):
        _say(
            f"{len(rows) - len(left)} of {len(rows)} solved already; without {keep} all are asked."
        )
    lines = _typed()

    def save() -> None:
        files.write_json(keep, {"exercises": {name: vars(one) for name, one in known.items()}})

    save()  # a place that can't be written is known before anything is asked
    with suppress(EOFError, KeyboardInterrupt):
        for row in left:
            print()
            _say(f"[{rows.index(row) + 1}/{len(rows)}] {row.name}\n{row.ask}")
            if row.test is not None:
                _say("(A line that holds a dot alone ends your code; /file NAME reads a file.)")
            if not _ask(row, known[row.name], lines, phrase, save):
                break
    _summary(rows, known, keep)


def _ask(
    exercise: Exercise,
    progress: Progress,
    lines: Iterator[str],
    phrase: Phrase | None,
    save: Callable[[], None],
) -> bool:
    """Read answers until the exercise is solved or left; return False if the learner ends."""
    last = ""
    while True:
        line = next(lines)
        word = line.strip()
        if word in ("/skip", "/quit"):
            return word == "/skip"
        if word == "/hint":
            _hint(exercise, progress, last, phrase)
            save()
            continue
        code = exercise.test is not None
        if word.startswith("/") and not (code and word.startswith("/file ")):
            if word != "/help":
                _say(f"{word} is no command{nearest(word, COMMANDS)}.")
            terminal.print_rows(list(COMMANDS.items()))
            continue
        try:
            last = _code(line, lines) if code else line
        except ConfigError as error:
            _say(str(error))
            continue
        right, about = exercise.check(last)
        progress.attempts += right is not None
        progress.solved |= bool(right)
        save()
        if right:
            _say(f"Right. {exercise.explain}")
            return True
        more = "\n/hint helps." if len(exercise.hints) > progress.hints or phrase else ""
        _say(about if right is None else f"Not yet. {about}{more}")


def _code(line: str, lines: Iterator[str]) -> str:
    """Return code that begins with a line and ends with a dot, or that of a file."""
    if line.startswith("/file "):
        return inputs.read_text(line.removeprefix("/file ").strip(), line)
    code = []
    while line.strip() != ".":
        code.append(line)
        line = next(lines)
    return "\n".join(code)


def _hint(exercise: Exercise, progress: Progress, last: str, phrase: Phrase | None) -> None:
    number, hints = progress.hints, exercise.hints
    hint = hints[number] if number < len(hints) else ""
    progress.hints += bool(hint)
    if hint or phrase is None:
        _say(f"Hint {number + 1} of {len(hints)}: {hint}" if hint else "There are no more hints.")
    if phrase is not None:
        _say(f"(The model, which may be wrong:) {phrase(exercise, last, hint)}")


def _typed() -> Iterator[str]:
    """Yield the lines that are typed or piped, but for blank ones."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() its line editing and history
        _say("Type an answer and press Enter; /help lists what else can be typed.")
    while True:
        if (line := input("> " if sys.stdin.isatty() else "")).strip():
            yield line


def _read_record(path: Path, rows: Sequence[Exercise]) -> dict[str, Progress]:
    """Return the learner's progress by exercise; one that was changed since begins anew."""
    known: dict[str, Progress] = {}
    try:
        stored = files.read_json(path, "learner's record", MAX_RECORD) if path.exists() else {}
        for name, row in stored.get("exercises", {}).items():
            known[name] = settings.build(Progress, row, name)
    except (AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is no learner's record ({error}); remove it, or name another with --record"
        ) from None
    for row in rows:
        digest = hashlib.sha256(settings.dump(row).encode()).hexdigest()[:16]
        if row.name not in known or known[row.name].exercise != digest:
            known[row.name] = Progress(digest)
    return known


def _phrasing(model: str) -> Phrase:
    """Return what puts a hint in a model's words; the model is read at the first hint."""
    home, step, adapters = paths.adapted(model, None, ())
    sessions = []

    def phrase(exercise: Exercise, answer: str, hint: str) -> str:
        start.prepare_jax(paths.cache())
        from jaxgen.text.session import open_session
        from jaxgen.train.display import printable

        if not sessions:
            sessions.append(open_session(home, step=step, adapter=adapters))
        asked = f"Exercise: {exercise.ask}\n"
        asked += f"The learner's answer, which is wrong: {answer[-1000:]}\n" if answer else ""
        asked += f"Hint of the teacher: {hint}\n" if hint else ""
        asked += "Help the learner in two short sentences. Do not tell the solution."
        how = Generation(max_new_tokens=80, temperature=0.0)
        return printable(sessions[0].chat([{"role": "user", "content": asked}], how).strip())

    return phrase


def _summary(rows: Sequence[Exercise], known: dict[str, Progress], path: Path) -> None:
    """Print what is solved, tried and open, an exercise a line."""
    done = [known[row.name] for row in rows]
    states = [
        f"{'solved' if one.solved else 'open':6}  tries {one.attempts}, hints {one.hints}"
        for one in done
    ]
    print()
    terminal.print_rows(list(zip([row.name for row in rows], states, strict=True)))
    _say(f"{sum(one.solved for one in done)} of {len(rows)} solved; kept in {path}")


def _say(text: str) -> None:
    """Print a text in lines that fit the terminal; its own line breaks stay."""
    width = min(terminal.width() or WIDEST, WIDEST)
    for line in text.rstrip().split("\n"):
        begin = line[: len(line) - len(line.lstrip())]
        print(textwrap.fill(line.strip(), width, initial_indent=begin, subsequent_indent=begin))

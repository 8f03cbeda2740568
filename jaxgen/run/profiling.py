"""A few steady steps of training, traced into the run folder, and what their time went to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxgen.errors import ConfigError
from jaxgen.profile import report, take, trace
from jaxgen.train.partitioner import Step
from jaxgen.train.state import State

SKIPPED, STEPS = 2, 5  # the first step compiles, and the second may wait for what came of that


def check(left: int, folder: Path) -> None:
    """Raise ConfigError if a run in `folder` has too few steps left to be profiled."""
    if left < SKIPPED + STEPS:
        raise ConfigError(
            f"--profile traces {STEPS} steps after {SKIPPED} others, but {folder} has {left} to "
            f"train; give a new --out and at least train.steps={SKIPPED + STEPS}"
        )


class Profiled:
    """A training step that traces some of its calls and says what they spent their time on.

    Entered around the loop: a trace that the loop's end cuts short is given up. A trace that can't
    be made or read is said, and training goes on.
    """

    def __init__(self, step: Step, folder: Path, begin: int, say: Callable[[str], object]) -> None:
        self.step, self.folder, self.begin, self.say = step, folder, begin, say
        self.calls = 0
        self.recording: Any = None
        self.before: set[Path] = set()

    def __enter__(self) -> Profiled:
        return self

    def __exit__(self, *_: object) -> None:
        if self.recording:
            self._attempt(lambda: self.recording.__exit__(None, None, None))
            self.say(f"no profile: training ended after {self.calls - SKIPPED} of {STEPS} steps")

    def __call__(self, state: State, batch: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
        """Take a step."""
        self.calls += 1
        if self.calls == SKIPPED + 1:
            jax.block_until_ready(state)
            self._attempt(self._start)
        state, metrics = self.step(state, batch)
        if self.calls == SKIPPED + STEPS and self.recording:
            jax.block_until_ready((state, metrics))
            self._attempt(self._finish)
        return state, metrics

    def extra_work(self) -> bool:
        """Return whether the last call did more than its step: it wrote the profile."""
        return self.calls == SKIPPED + STEPS

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, RuntimeError, ValueError) as error:  # JAX's own are RuntimeErrors
            reason = " ".join(str(error).split())[:200]
            self.say(f"no profile: {reason}; training goes on")

    def _start(self) -> None:
        self.before = trace.files(self.folder)
        recording = trace.record(self.folder)
        recording.__enter__()
        self.recording = recording

    def _finish(self) -> None:
        recording, self.recording = self.recording, None
        recording.__exit__(None, None, None)
        place, found = take.read_profile(self.folder, self.before)
        first = self.begin + SKIPPED + 1
        self.say(
            f"profile of steps {first} to {first + STEPS - 1}, {found.seconds / STEPS:.4g} s each; "
            f"trace: {place}"
        )
        for line in report.lines(found, STEPS):
            self.say(line)

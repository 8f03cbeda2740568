"""What libraries say during a run: to its log.txt, so that the terminal speaks of the run alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxgen

LIBRARIES = ("absl", "jax", "orbax", "grain", "matplotlib")
OURS = Path(jaxgen.__file__).parent
# A reader can act on it: the folder of compiled programs is to be removed.
WORTH_SHOWING = "compilation cache"


class _Handler(logging.Handler):
    def __init__(self, note: Callable[[str], object], say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self.note, self.say = note, say

    def emit(self, record: logging.LogRecord) -> None:
        out = self.say if record.levelno >= logging.ERROR else self.note
        out(f"{record.levelname.lower()} of {record.name}: {' '.join(record.getMessage().split())}")


@contextmanager
def collected(note: Callable[[str], object], say: Callable[[str], object]) -> Iterator[None]:
    """Hand warnings and log records to functions of a line, until the block ends.

    note: gets warnings of libraries. say: gets their errors, and warnings of our own.
    """
    handler, before = _Handler(note, say), warnings.showwarning
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    kept = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]

    def show(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        line = warnings.formatwarning(message, category, filename, lineno).strip()
        line = " ".join(line.removeprefix("jaxgen: ").split())
        if OURS in Path(filename).parents or WORTH_SHOWING in str(message):
            say(line)
        else:
            note(f"{line} ({filename}:{lineno})")

    warnings.showwarning = show
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        warnings.showwarning = before
        for logger, (handlers, propagate, level) in zip(loggers, kept, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)

"""TensorBoard event files, through tensorboardX where it is installed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 5.0  # tensorboardX syncs the disk at each flush, which is too dear for each step
ABSENT = 'no TensorBoard events: pip install "jaxgen[track]" to have them'


def installed() -> bool:
    """Return whether events can be written here."""
    return find_spec("tensorboardX") is not None


def load() -> None:
    """Import tensorboardX now, and not in the log's thread, where SciPy is called meanwhile.

    tensorboardX imports torch where it is installed, and SciPy asks a torch that is half imported
    for names that it does not have yet.
    """
    if installed():
        import_module("tensorboardX")


class Events:
    """One event file; steps after `resume_step` of earlier files are superseded by it.

    Written synchronously and without tensorboardX's own queue, which blocks for ever once its
    thread has died of a full disk. Methods raise OSError where the system refuses.
    """

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore

        # A NaN is drawn as one; the log and the bar already speak of it.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        # Two resumptions within a second must not share a file.
        suffix = f".{os.getpid()}.{time.monotonic_ns()}"
        self.writer = EventsWriter(str(folder / "events"), filename_suffix=suffix)
        self._write(resume_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Write each value as the scalar "prefix/name"."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(f"{prefix}/{name}", value))
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush()

    def text(self, step: int, title: str, text: str) -> None:
        """Write a sample text; it is shown verbatim."""
        from tensorboardX.summary import text as summary

        # TensorBoard renders Markdown: an indented block is left as it is.
        block = "\n".join(f"    {line}" for line in text.split("\n"))
        self._write(step, summary=summary(f"samples/{title}", block))
        self._flush()

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()

    def _flush(self) -> None:
        self.writer.flush()
        self.flushed = time.monotonic()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

        self.writer.write_event(Event(wall_time=time.time(), step=step, **content))

"""Which checkpoint of a run is meant: the newest, the best, a number, or a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from jaxgen import files

CHECKPOINTS = "checkpoints"
Step = int | Literal["best", "last"] | None


def run_and_step(path: str | os.PathLike) -> tuple[Path, int | None]:
    """Return the run that a checkpoint's own folder belongs to, and its step.

    RUN/checkpoints/00000200 gives (RUN, 200); any other path itself and None.
    """
    path = files.to_path(path)
    name, above = path.name, path.parent
    if above.name == CHECKPOINTS and name.isascii() and name.isdigit() and len(name) >= 8:
        return above.parent, int(name)
    return path, None

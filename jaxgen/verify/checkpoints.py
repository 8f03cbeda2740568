"""Which checkpoints a run has, and whether each of them is as it was written, to the last byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.run import folder as folders
from jaxgen.store import Checkpoints


@dataclass(frozen=True)
class Line:
    """One checkpoint; saved, nbytes and loss are None where its manifest is damaged.

    saved: when, in UTC. loss: the validation loss that it was saved with, if there was one.
    problems: what is wrong with it, in words that name files or arrays; () if it is sound.
    """

    step: int
    saved: str | None
    nbytes: int | None
    loss: float | None
    best: bool
    problems: tuple[str, ...]


def checkpoints(folder: Path) -> Iterator[Line]:
    """Yield each checkpoint of a run once it has been read and compared with its sha256 sums.

    The folder is only read, so the run may be going on meanwhile: what it deletes is left out.
    Raises ConfigError if the folder is no run, CheckpointError if it holds no checkpoint.
    """
    folders.existing_settings(folder)
    store = Checkpoints(
        folder / folders.CHECKPOINTS, keep_last=1, keep_best=0, fingerprints={}, verify="full"
    )
    steps = store.steps()
    if not steps:
        raise CheckpointError(f"{store.folder} holds no checkpoint; train first")
    best = store.best()
    for step in steps:
        line = _line(store, step, best)
        if not line.problems or step in store.steps():
            yield line


def _line(store: Checkpoints, step: int, best: int | None) -> Line:
    try:
        about, problems = store.about(step), store.verify(step)
    except CheckpointError as error:  # of a newer jaxgen, or deleted just now
        about, problems = None, [str(error)]
    return Line(
        step=step,
        saved=about and about.time,
        nbytes=about and about.nbytes,
        loss=about and about.metric,
        best=step == best,
        problems=tuple(problems),
    )


def unfinished(folder: Path) -> list[str]:
    """Return the names of what an interrupted save has left, or one that is under way writes."""
    return sorted(path.name for path in (folder / folders.CHECKPOINTS).glob(f"{files.TEMPORARY}*"))

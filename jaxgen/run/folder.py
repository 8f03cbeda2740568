"""The folder of a run: who holds it, and which config it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxgen import files, settings_yaml
from jaxgen import settings as sets
from jaxgen.errors import CheckpointError, ConfigError, UserError, run_advice
from jaxgen.pretrained.chat_template import FILE as CHAT
from jaxgen.pretrained.generation_config import GENERATION
from jaxgen.run.settings import Settings, build_settings
from jaxgen.store import lock_of
from jaxgen.store.directory import list_steps
from jaxgen.train.log import METRICS, TIMES

CONFIG = "config.yaml"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
LOCK = "LOCK"
PROFILE = "profile"
ENVIRONMENT = "env.json"
TEACHER = "teacher.json"
CARD = "privacy.json"
AUDIT = "audit"  # a folder
# What a run writes beside its config and checkpoints.
WRITTEN = (TOKENIZER, ENVIRONMENT, PROFILE, METRICS, TIMES, "log.txt")
WRITTEN += ("loss.png", "events", "samples", GENERATION, CHAT, TEACHER, CARD, AUDIT)
CRASH = "crash-"


@contextmanager
def claimed(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the run folder for this process; one that is made here and stays empty vanishes again.

    Yields what raises BusyError if it is held no more (`Lease.check`).

    Raises ConfigError for a folder that holds something else than a run, BusyError if another
    process holds it or the system refuses.
    """
    with files.refusals(folder):
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    # Temporary names are what a kill left behind.
    found = {name for name in found if not name.startswith(files.TEMPORARY)} - {LOCK}
    # A run that was killed before it had begun may be begun again.
    others = sorted(name for name in found if name not in WRITTEN and not name.startswith(CRASH))
    if others and CONFIG not in found:
        raise ConfigError(
            f"{folder} exists and is no run: it holds {others[0]!r} but no {CONFIG}; "
            f"give another --out"
        )
    with files.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_of(folder) as lock:
        try:
            yield lock.check
        finally:
            with suppress(OSError):
                if not found and {path.name for path in folder.iterdir()} <= {LOCK}:
                    files.remove(folder)


def kept_settings(folder: Path) -> Settings | None:
    """Return the resolved settings that a run folder was made with, None if it is new.

    Raises CheckpointError if its config.yaml can't be read.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        return sets.build(Settings, settings_yaml.read_yaml(path))
    except UserError as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it from a copy") from error


def clear(folder: Path, *, but: Collection[str] = ()) -> str:
    """Remove what a run has written in its folder, and nothing else; return what that was.

    but: names that stay. To be called by the owner of the run's lock.
    """
    steps = list_steps(folder / CHECKPOINTS)
    gone = []
    with files.refusals(folder):
        # The config goes first: what is left after a kill is no run any more.
        for path in [folder / CONFIG, folder / CHECKPOINTS, *map(folder.joinpath, WRITTEN)]:
            if path.name in but:
                continue
            if not (path.exists() or path.is_symlink()):
                continue
            files.remove(path)
            told = f" (steps {', '.join(map(str, steps))})" if steps else ""
            gone.append(path.name + (told if path.name == CHECKPOINTS else ""))
    return ", ".join(gone)


def existing_settings(folder: Path) -> Settings:
    """Return the settings of a run; ConfigError if there is no such folder, or it is no run."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such run; `jaxgen train CONFIG.yaml --out {folder}` makes it"
        )
    settings = kept_settings(folder)
    if settings is None:
        raise ConfigError(f"{folder} is no run: it has no {CONFIG}; {run_advice(folder)}")
    return settings


def changed_settings(folder: Path, assignments: Sequence[str]) -> Settings:
    """Return the settings of a run with "section.key=value" overrides."""
    settings = existing_settings(folder)
    if assignments:
        settings = build_settings(sets.override(sets.as_dict(settings), assignments))
    return settings

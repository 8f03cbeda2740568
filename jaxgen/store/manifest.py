"""What a checkpoint must hold, to the last byte: `manifest.json`, and checking against it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jaxgen
from jaxgen import files
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.store.pytree_io import Leaf

NAME = "manifest.json"
FORMAT = 2  # the newest we read: 1 has whole arrays, 2 the pieces of several processes
NEEDS = "0.1.0"  # the first jaxgen that reads them
LATER = ("text",)  # fingerprints that the first checkpoints lack


class DamageError(Exception):
    """A file of a checkpoint is not as it was written; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint's content: `files` and `arrays` map names to their sizes and sha256."""

    step: int
    metric: float | None
    fingerprints: dict[str, str]
    extra: dict[str, Any]
    arrays: dict[str, dict[str, Any]]
    files: dict[str, dict[str, Any]]
    format: int = 1
    needs: str = NEEDS
    versions: dict[str, str]
    time: str

    @property
    def leaves(self) -> dict[str, Leaf]:
        """What each array is."""
        return {
            name: Leaf(row["dtype"], tuple(row["shape"]), row.get("key"))
            for name, row in self.arrays.items()
        }

    @property
    def nbytes(self) -> int:
        """The size of all files but the manifest."""
        return sum(row["size"] for row in self.files.values())


def versions() -> dict[str, str]:
    """Return the versions that a checkpoint was written with."""
    others = {"jax": "jax", "orbax": "orbax-checkpoint"}
    return {"jaxgen": jaxgen.__version__} | {name: version(dist) for name, dist in others.items()}


def finite(metric: float | None) -> float | None:
    """Return a metric as a manifest holds it: None for NaN and infinity."""
    return float(metric) if metric is not None and math.isfinite(metric) else None


def plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return extra as it will be read again; ValueError for a NaN in it."""
    return json.loads(json.dumps(dict(extra), allow_nan=False))


def refuse_others(folder: Path, manifest: Manifest, mine: Mapping[str, str]) -> None:
    """Raise ConfigError, naming it, if a fingerprint of mine is not that of a checkpoint."""
    for name, own in mine.items():
        if name in LATER and name not in manifest.fingerprints:
            continue
        its = manifest.fingerprints.get(name)
        if its != own:
            raise ConfigError(
                f"{folder} was made with another {name} ({(its or 'none')[:12]}, now {own[:12]}); "
                f"use the same, or another folder"
            )


def now() -> str:
    """Return the time of writing, for people; nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {relative path: size and sha256} of every file below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": files.digest(path),
        }
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whose last field is the sha256 of all the others."""
    files.write(folder / NAME, _text(asdict(manifest)))


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest; DamageError if a byte of it has changed.

    Raises CheckpointError for a format that is newer than ours.
    """
    path = folder / NAME
    with _reading(path):
        raw = path.read_bytes()
    try:
        fields = json.loads(raw)
        fields.pop("sha256")
        intact = _text(fields).encode() == raw
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path} is no manifest") from error
    if not intact:
        raise DamageError(f"{path} has been changed")
    if fields["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {fields['format']}; it needs jaxgen >= {fields['needs']}, "
            f"this is {jaxgen.__version__}"
        )
    return Manifest(**fields)


def damages(
    folder: Path, manifest: Manifest, *, verify: str, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """Return what is wrong with each file, in words that begin with its path; [] if nothing.

    verify: "full" compares contents, "off" sizes only. share: (index, count), for one of several
    processes that look at a part of the files each.
    """

    def damage(name: str) -> str | None:
        path, row = folder / name, manifest.files[name]
        try:
            with _reading(path):
                size = path.stat().st_size
                if size != row["size"]:
                    return f"{path} has {size} bytes instead of {row['size']}"
                if verify == "full" and files.digest(path) != row["sha256"]:
                    return f"{path} has been changed: its sha256 differs"
        except DamageError as error:
            return str(error)
        return None

    mine = list(manifest.files)[share[0] :: share[1]]
    return [problem for problem in files.each(damage, mine) if problem is not None]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        # Not damage: another user's file is as good as it was.
        with files.refusals(path):
            raise
    except FileNotFoundError as error:
        raise DamageError(f"{path} is missing") from error
    except OSError as error:
        raise DamageError(f"{path} can't be read: {error.strerror}") from error


def _text(fields: dict[str, Any]) -> str:
    body = json.dumps(fields, sort_keys=True, allow_nan=False)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**fields, "sha256": seal}, indent=1, sort_keys=True, allow_nan=False) + "\n"

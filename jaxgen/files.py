"""Files that appear whole or not at all, and refusals of the file system said in one line."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from jaxgen.bucket_requests import SCHEMES
from jaxgen.buckets import BucketPath
from jaxgen.errors import BusyError, CheckpointError, ConfigError

X = TypeVar("X")
Y = TypeVar("Y")
J = TypeVar("J", dict, list)

TEMPORARY = ".tmp-"  # how the name of everything unfinished begins
BLOCK = 1 << 20
URL = re.compile("([a-z][a-z0-9+.-]+):/+(.*)")  # pathlib makes "s3:/x" of "s3://x"
LAST = ("corpus.json", "config.json", "config.yaml")  # what makes a folder in a bucket whole

_REFUSALS = {
    errno.EROFS: "is on a read-only file system; give a place that can be written",
    errno.EACCES: "may not be accessed; change its permissions or give another place",
    errno.EPERM: "may not be changed; change its permissions or give another place",
    errno.ENOSPC: "has no space left on its disk; free some, or give another place",
    errno.EDQUOT: "has no quota left; free some, or give another place",
    errno.EFBIG: "would exceed the largest file allowed here (ulimit -f)",
    errno.ENOENT: "does not exist or has vanished; make it, or correct the path",
    errno.ENOTDIR: "is or lies below a file, not a folder; correct the path",
    errno.EISDIR: "is a folder, not a file; correct the path",
    errno.EEXIST: "exists already; give another place or remove it",
    errno.ENOTEMPTY: "exists already and is not empty; give another place or remove it",
    errno.ELOOP: "is a loop of symbolic links; correct the path",
    errno.ENAMETOOLONG: "has too long a name; shorten the path",
    errno.EIO: "can't be read or written: the disk reports an error (EIO); check the disk",
    errno.EMFILE: "can't be opened: this process has too many files open (ulimit -n)",
}


def to_path(path: str | os.PathLike) -> Path:
    """Return a path of this machine, or in a bucket: gs://BUCKET/NAME or s3://BUCKET/NAME.

    Raises ConfigError for another address.
    """
    # A `Path` that looks like one was made where no bucket can be.
    match = None if isinstance(path, Path) else URL.match(os.fspath(path))
    if match and match[1] in SCHEMES and not os.path.lexists(path):
        if not match[2].strip("/"):
            raise ConfigError(f"{path} names no bucket; give {match[1]}://BUCKET/NAME")
        return BucketPath(f"{match[1]}://{match[2]}")
    refuse_url(path)
    return path if isinstance(path, Path) else Path(path)


def refuse_url(path: str | os.PathLike) -> None:
    """Raise ConfigError for an address where only folders of this machine, and buckets, can be."""
    match = None if isinstance(path, BucketPath) else URL.match(os.fspath(path))
    if match and not os.path.lexists(path):
        address = f"{match[1]}://{match[2]}"
        if match[1] in SCHEMES:
            refuse_bucket(address, "copy it, and give a path of this machine")
        raise ConfigError(
            f"{address} is an address, and jaxgen reads and writes folders of this machine and "
            f"buckets of {' and '.join(f'{scheme}://' for scheme in SCHEMES)}; copy it, or mount "
            f"it, and give that path"
        )


def in_bucket(path: str | os.PathLike) -> bool:
    """Return whether a path of `to_path` is one in a bucket."""
    return isinstance(path, BucketPath)


def refuse_bucket(path: str | os.PathLike, remedy: str) -> None:
    """Raise ConfigError, which ends with a remedy, for a bucket where none can be."""
    if in_bucket(to_path(path)):
        raise ConfigError(
            f"{path} is an address, and this is not read from or written to buckets; {remedy}"
        )


@contextmanager
def refusals(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError of the block into a BusyError of one line that names `path`.

    Raises ConfigError for an address (`refuse_url`).
    """
    refuse_url(path)
    try:
        yield
    except OSError as error:
        raise BusyError(f"{path} {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return _REFUSALS.get(error.errno or 0, f"is refused by the system: {error.strerror or error}")


def sync_folder(path: str | os.PathLike) -> None:
    """Make the names in a folder durable; file systems that can't (some on networks) are let be."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: str | os.PathLike) -> None:
    """Make the content of a file durable, which it is in a bucket."""
    if in_bucket(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file atomically and durably: its old content stays until the new one is on disk.

    Text is UTF-8, newlines as they are. Raises BusyError where the system refuses.
    """
    path = to_path(path)
    raw = content.encode("utf-8") if isinstance(content, str) else content
    draft = _draft(path)
    with refusals(path):
        if in_bucket(path):
            path.write_bytes(raw)
            return
        try:
            with draft.open("xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as indented JSON, atomically; a NaN or infinity in it raises ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write(path, text + "\n")


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name when the block succeeds.

    Parents are made. On success every file is made durable first; on failure the temporary folder
    is removed. Raises BusyError where the system refuses, also when `path` exists already (an
    empty folder is replaced). In a bucket, files replace those of their name, `LAST` of all.
    """
    path = to_path(path)
    draft = _draft(path)
    with refusals(path):
        if isinstance(path, BucketPath):
            with tempfile.TemporaryDirectory(prefix=TEMPORARY) as name:
                yield Path(name)
                _upload(Path(name), path)
            return
        if path.parent.exists() and not path.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        try:
            yield draft
            _sync_tree(draft)
            draft.rename(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(path.parent)


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of a file to write, which takes the name `path` when the block succeeds.

    It is made durable first; on failure it is removed. Parents are made. Raises BusyError where the
    system refuses.
    """
    path = to_path(path)
    draft = _draft(path)
    with refusals(path):
        if isinstance(path, BucketPath):
            with tempfile.TemporaryDirectory(prefix=TEMPORARY) as name:
                yield Path(name) / path.name
                path.put(Path(name) / path.name)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            sync_file(draft)
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it; what is not there is no error."""
    if isinstance(path, BucketPath):
        path.remove()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def below(folder: Path) -> list[Path]:
    """Return the files of a folder by name, then those of each folder in it; none is hidden."""
    if isinstance(folder, BucketPath):
        inside = [path.relative_to(folder).parts for path in folder.rglob("*")]
        shown = [parts for parts in inside if not any(part.startswith(".") for part in parts)]
        ordered = sorted(shown, key=lambda p: [*((1, part) for part in p[:-1]), (0, p[-1])])
        return [folder.joinpath(*parts) for parts in ordered]
    paths = []
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(above, name) for name in sorted(names) if not name.startswith(".")]
    return paths


def matches(name: str, pattern: str) -> list[Path]:
    """Return the path of a name if that is there, else those that a glob matches, in order."""
    path = to_path(name).expanduser()
    if path.exists() or path.is_symlink():
        return [path]
    if isinstance(path, BucketPath):
        bucket, *parts = pattern.partition("://")[2].split("/")
        return sorted(BucketPath(f"{path.scheme}://{bucket}").glob("/".join(parts)))
    names = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return [Path(name) for name in sorted(names)]


def touch(path: Path) -> None:
    """Set the time of a file to now, where it can be; what is in a bucket keeps its own."""
    if not in_bucket(path):
        with suppress(OSError):
            os.utime(path)


def free_space(path: Path) -> int | float:
    """Return the bytes that may be written at a path, which need not exist; inf in a bucket."""
    if in_bucket(path):
        return math.inf
    here = next(above for above in (path, *path.absolute().parents) if above.exists())
    return shutil.disk_usage(here).free


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON file (`object_pairs_hook`); ValueError for a key held twice."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return mapping


def lines(text: str) -> list[str]:
    """Return the lines of a text, which end at "\\n" or "\\r\\n" and nowhere else.

    str.splitlines would cut at U+2028, U+0085, form feeds and five others too, which are text.
    """
    rows = text.replace("\r\n", "\n").split("\n")
    return rows if rows[-1] else rows[:-1]


def digest(path: str | os.PathLike) -> str:
    """Return the sha256 (hex) of a file, read in blocks; OSError if it can't be read."""
    result = hashlib.sha256()
    with to_path(path).open("rb") as file:
        while block := file.read(BLOCK):
            result.update(block)
    return result.hexdigest()


def each(function: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """Return the function of every item, in their order, made by threads on all cores.

    For what lets go of the interpreter: reading, and hashing more than a few bytes.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(function, items))


def human(size: int | float) -> str:
    """Return a number of bytes as people say it: "512 B", "1.2 GiB"."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if abs(size) < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def read_artifact(path: str | os.PathLike, what: str, max_bytes: int) -> bytes:
    """Return the bytes of a model or tokenizer file, refusing what is plainly no such file.

    what: its role in words, for messages. Raises CheckpointError for a file that is missing,
    empty, larger than max_bytes, a Git LFS pointer or a web page.
    """
    path = to_path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a {what}; name the file in it")
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(
                f"{path} has {human(size)}, more than the {human(max_bytes)} a {what} may have"
            )
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such {what}; correct the path") from error
    except OSError as error:
        raise CheckpointError(f"{path} {_reason(error)}") from error
    refuse_impostor(path, what, raw)
    return raw


def read_json(path: Path, what: str, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object of a model or tokenizer file; errors are those of `read_json_as`."""
    return read_json_as(dict, path, what, max_bytes)


def read_json_as(kind: type[J], path: Path, what: str, max_bytes: int) -> J:
    """Return the JSON array (list) or object (dict) of a model or tokenizer file.

    Raises CheckpointError as `read_artifact` does, for another value, and for a key held twice.
    """
    try:
        value = json.loads(read_artifact(path, what, max_bytes), object_pairs_hook=once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path} is no {what}: {reason}; fetch it again") from error
    if not isinstance(value, kind):
        word = "object" if kind is dict else "array"
        raise CheckpointError(f"{path} is no {what}: it holds no JSON {word}; fetch it again")
    return value


def refuse_impostor(path: str | os.PathLike, what: str, raw: bytes) -> None:
    """Raise CheckpointError if a file that begins with `raw` is empty, an LFS pointer or HTML."""
    if not raw:
        raise CheckpointError(f"{path} is empty, not a {what}; fetch it again")
    if raw.startswith(b"version https://git-lfs.github.com/spec"):
        raise CheckpointError(
            f"{path} is no {what}: this is an LFS pointer; run git lfs pull in its repository"
        )
    if raw[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page (HTML), not a {what}; download the raw file")


def config_folder() -> Path:
    """Return the folder of the configs that come with jaxgen, installed or in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _upload(folder: Path, target: BucketPath) -> None:
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: str(name) in LAST):
        (target / name).put(folder / name)


def _draft(path: Path) -> Path:
    # A random name, not the process id: two machines may share the folder.
    return path.parent / f"{TEMPORARY}{path.name[:80]}-{uuid.uuid4().hex[:12]}"


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(os.path.join(root, name))
        sync_folder(root)

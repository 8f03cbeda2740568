"""Objects of gs:// and s3:// as paths: a `pathlib.Path` whose methods ask a bucket, through fsspec.

What a bucket lacks, and what stands for it:

    rename   an object is there once its upload has ended; a folder is whole once the file that
             makes it so is there, which is written last
    fsync    an upload that has ended is durable
    flock    `BucketPath.create`, which makes an object only where there is none
    append   files that grow lie in a `Spool` on this machine, and are uploaded
    folder   names with "/" in them; one without files does not exist
"""

# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any

from jaxgen.bucket_requests import UPLOADS, one_line, request
from jaxgen.errors import BusyError

BLOCK = 1 << 20  # bytes read at once where a file is read in order
PART = 32 << 20  # bytes of a part of an upload
MISSING = "NoSuchBucket", "bucket does not exist"


class BucketPath(PosixPath):
    """An object or a prefix: BucketPath("gs://bucket/run") / "config.yaml".

    Methods are those of `pathlib.Path`, and raise its errors; BusyError, in one line, for what is
    none of them: credentials, a bucket that is not there, a connection that stays lost.
    """

    # PosixPath makes one "/" of several, and knows no scheme.

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def key(self) -> str:
        """The path as fsspec wants it: bucket/name."""
        return "/".join(self.parts[1:])

    @property
    def scheme(self) -> str:
        """What it begins with: "gs" or "s3"."""
        return self.parts[0][:-1]

    @property
    def parent(self) -> BucketPath:
        return super().parent if len(self.parts) > 2 else self

    @property
    def parents(self) -> tuple[BucketPath, ...]:
        above, all_above = self, []
        while above.parent != above:
            above = above.parent
            all_above.append(above)
        return tuple(all_above)

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> BucketPath:
        return self

    def expanduser(self) -> BucketPath:
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        return self

    # Looking

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        entry = self._call("info", self.key)
        folder = entry["type"] == "directory"
        when = entry.get("mtime") or entry.get("LastModified")
        nanoseconds = round(when.timestamp() * 1e6) * 1000 if when else 0
        # Which content this is: the number of a file's inode, where there is one.
        version = str(entry.get("generation") or entry.get("ETag") or entry.get("etag") or "")
        inode = int(hashlib.sha256(version.encode()).hexdigest()[:15], 16)
        device = int(hashlib.sha256(self.key.encode()).hexdigest()[:15], 16)
        mode = (stat.S_IFDIR if folder else stat.S_IFREG) | 0o644
        seconds = nanoseconds // 10**9
        row = (mode, inode, device, 1, 0, 0, entry["size"] or 0, seconds, seconds, seconds)
        return os.stat_result(row, dict.fromkeys(("st_mtime_ns", "st_ctime_ns"), nanoseconds))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def exists(self, **_: Any) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_file(self, **_: Any) -> bool:
        return self._is(stat.S_ISREG)

    def is_dir(self, **_: Any) -> bool:
        return self._is(stat.S_ISDIR)

    def is_symlink(self) -> bool:
        return False

    def _is(self, kind: Any) -> bool:
        try:
            return kind(self.stat().st_mode)
        except FileNotFoundError:
            return False

    def iterdir(self) -> Iterator[BucketPath]:
        keys = self._call("ls", self.key, detail=False)
        return (self._of(key) for key in keys if key.rstrip("/") != self.key)

    def glob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:
        return map(self._of, self._call("glob", f"{self.key}/{pattern}"))

    def rglob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:
        """Yield the files below of such a name; unlike pathlib's, no folders."""
        return (path for path in map(self._of, self._call("find", self.key)) if path.match(pattern))

    def _of(self, key: str) -> BucketPath:
        return type(self)(f"{self.scheme}://{key}")

    # Reading

    def open(
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, **more: Any
    ) -> Any:
        kind = mode.replace("b", "").replace("t", "")
        if kind == "r":
            if "b" in mode and not buffering:
                return _Reader(self)
            file = io.BufferedReader(_Reader(self), BLOCK)
            return file if "b" in mode else io.TextIOWrapper(file, encoding or "utf-8", **more)
        if kind in ("w", "x") and "b" in mode:
            if kind == "x" and self.exists():
                raise _error(FileExistsError, errno.EEXIST, self)
            return _Upload(self)
        raise io.UnsupportedOperation(f"{self}: mode {mode!r} is not for buckets")

    def read_bytes(self) -> bytes:
        return self._call("cat_file", self.key)

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def read_range(self, begin: int, end: int) -> bytes:
        """Return the bytes [begin, end), of which as many must be there."""
        return self._call("cat_file", self.key, start=begin, end=end) if end > begin else b""

    # Writing

    def write_bytes(self, data: Any) -> int:
        self._call("pipe_file", self.key, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes) -> bool:
        """Write an object where there is none; return whether it was there already, as False.

        Of any number of programs that do so at once one succeeds.
        """
        try:
            self._call("pipe_file", self.key, data, mode="create")
        except FileExistsError:
            # The answer to an attempt of ours may have been lost.
            return self.read_bytes() == data
        return True

    def put(self, source: Path) -> None:
        """Upload a file of this machine."""
        self._call("put_file", str(source), self.key)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise _error(FileExistsError, errno.EEXIST, self)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._call("rm_file", self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Remove all below; what is not there is no error."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[BucketPath]:
        try:
            return [self._of(key) for key in self._call("find", self.key)]
        except FileNotFoundError:
            return []

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise io.UnsupportedOperation(f"{self}: a bucket has no such operation")

    rename = replace = symlink_to = hardlink_to = touch = rmdir = chmod = _refused

    def _call(self, method: str, *arguments: Any, **more: Any) -> Any:
        """Return what fsspec does (`bucket_requests.request`)."""
        try:
            return request(self, self.scheme, method, *arguments, **more)
        except FileNotFoundError as error:
            self._check_bucket(error, method)
            raise _error(FileNotFoundError, errno.ENOENT, self) from None

    def _check_bucket(self, error: Exception, method: str) -> None:
        """Raise BusyError if it is the bucket that is not there."""
        missing = method in UPLOADS or any(word in str(error) for word in MISSING)
        try:
            if not missing:
                _look_for_bucket(self.scheme, self.parts[1])
        except FileNotFoundError:
            missing = True
        if missing:
            raise BusyError(
                f"{self}: there is no bucket {self.scheme}://{self.parts[1]}; make it, or correct "
                f"its name"
            ) from error


@lru_cache
def _look_for_bucket(scheme: str, bucket: str) -> None:
    """Raise FileNotFoundError for a bucket of Google's that is not there.

    gcsfs says of an object in it what it says of any; s3fs says `MISSING`.
    """
    if scheme == "gs":
        # Not "info", for which many that may write objects have no permission.
        request(f"{scheme}://{bucket}", scheme, "ls", bucket, max_results=1)


def _error(kind: type[OSError], code: int, path: Path) -> OSError:
    return kind(code, os.strerror(code), str(path))


class _Reader(io.RawIOBase):
    """A file that is read by ranges, each asked for again if the connection is lost."""

    def __init__(self, path: BucketPath) -> None:
        entry = path.stat()
        if stat.S_ISDIR(entry.st_mode):
            raise _error(IsADirectoryError, errno.EISDIR, path)
        self._path, self._size, self._at = path, entry.st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._read(self._size)  # Python's own asks for 8 KiB at a time

    def _read(self, size: int) -> bytes:
        content = self._path.read_range(self._at, min(self._at + size, self._size))
        self._at += len(content)
        return content


class _Upload(io.BufferedIOBase):
    """A new object, uploaded in parts; it is there once the file is closed without an error."""

    def __init__(self, path: BucketPath) -> None:
        self._path = path
        self._file = path._call("open", path.key, "wb", block_size=PART)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), PART):
            self._do(self._file.write, view[begin : begin + PART])
        return len(view)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._do(self._file.close)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
            return
        self._discard()
        super().close()

    def _do(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except FileNotFoundError as error:
            self._discard()
            self._path._check_bucket(error, "put_file")
        except Exception as error:
            self._discard()
            raise BusyError(
                f"{self._path} is not uploaded: {one_line(error)}; start again"
            ) from error

    def _discard(self) -> None:
        if not self._file.closed:
            self._file.discard()
            self._file.closed = True  # or it would upload what it has when it is forgotten


class Spool:
    """A folder of this machine for files that grow, which `upload` copies to their bucket.

    home: where they belong; names: those to go on with, fetched if they are there.
    """

    def __init__(self, home: BucketPath, names: tuple[str, ...]) -> None:
        self.home = home
        self._folder = tempfile.TemporaryDirectory(prefix="jaxgen-spool-")
        self.folder = Path(self._folder.name)
        self._uploaded: dict[Path, tuple[int, int]] = {}
        for name in names:
            if (home / name).is_file():
                (self.folder / name).write_bytes((home / name).read_bytes())
                self._uploaded[self.folder / name] = _stamp(self.folder / name)

    def upload(self) -> None:
        """Upload what has been written since the last time."""
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            if (now := _stamp(path)) != self._uploaded.get(path):
                (self.home / path.relative_to(self.folder)).put(path)
                self._uploaded[path] = now


def _stamp(path: Path) -> tuple[int, int]:
    entry = path.stat()
    return entry.st_size, entry.st_mtime_ns

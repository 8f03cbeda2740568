"""One process at a time in a run's folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.buckets import BucketPath
from jaxgen.errors import BusyError
from jaxgen.store.lease import Lease

NAME = "LOCK"
PATIENCE = 0.5  # seconds in which a new owner has surely written its record


def lock_of(folder: Path) -> RunLock | Lease:
    """Return what holds a folder: the kernel's lock, or in a bucket a lease."""
    return Lease(folder) if isinstance(folder, BucketPath) else RunLock(folder)


class RunLock:
    """Context manager that holds `folder`/LOCK, so that a second process is turned away.

    The lock is the kernel's (flock), so it ends with its process however that ends; the record in
    the file only names the owner for others and decides nothing. The folder is made if need be.
    Raises BusyError naming the owner, at once, or where the system refuses.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / NAME
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        with files.refusals(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.refusals(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        # A forked worker would hold the lock beyond our death.
        os.register_at_fork(after_in_child=self._forget)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is None:
            return
        # The file stays: removing it would let two processes lock two files of one name.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
        self._forget()

    def check(self) -> None:
        """Do nothing: the kernel's lock can't be lost."""

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise BusyError(
                    f"{self.path} can't be locked: {error.strerror}; give a folder on a file "
                    "system with locks"
                ) from error
            raise BusyError(
                f"{self.path.parent} is in use by {_owner(handle)}; stop it, or give another folder"
            ) from error
        record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with files.refusals(self.path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, (json.dumps(record) + "\n").encode(), 0)
            os.fsync(handle)

    def _forget(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _owner(handle: int) -> str:
    """Return the owner in words; the record may be a moment younger than the lock."""
    deadline = time.monotonic() + PATIENCE
    while True:
        record = _record(handle)
        if record is not None:
            return f"process {record['pid']} on {record['host']} since {record['started']}"
        if time.monotonic() > deadline:
            return "another process"
        time.sleep(0.02)


def _record(handle: int) -> dict[str, Any] | None:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return record if {"pid", "host", "started"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None

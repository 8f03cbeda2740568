"""One process at a time in a run's folder in a bucket, which has no locks.

    LOCK/00000007    made by its owner where there was none, and renewed every few seconds

The highest number owns the folder, and numbers only grow: who has lost it sees a higher one, by
`check`, before anything that a checkpoint is whole by is written. Nothing depends on clocks of
several machines.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from datetime import datetime
from threading import Event, Thread
from typing import Any

from jaxgen import files, host, terminal
from jaxgen.buckets import BucketPath
from jaxgen.errors import BusyError

RENEWAL = 4.0  # seconds
LEASE = 20.0  # seconds without a renewal after which a folder may be taken


class Lease:
    """Context manager that holds `folder`, as `RunLock` does on a file system.

    Raises BusyError naming the owner: at once where that is a process of this machine, else when it
    is seen to renew. That of a process that is gone is taken.
    """

    def __init__(self, folder: BucketPath) -> None:
        self.folder, self.path = folder, folder / "LOCK"
        self._number, self._renewals = 0, 0
        self._record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "machine": host.machine(),
            "birth": host.birth(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._closing = Event()
        self._thread = Thread(target=self._renew, name="jaxgen-lease", daemon=True)

    def __enter__(self) -> Lease:
        with files.refusals(self.path):
            while not self._number:
                newest = max(self._numbers(), default=0)
                if newest:
                    self._wait_for(newest)
                if self._object(newest + 1).create(self._text()):
                    self._number = newest + 1
            for number in self._numbers():
                if number < self._number:
                    self._object(number).unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        # The object stays: the next number must be higher.
        with suppress(BusyError, OSError):
            self.check()
            self._object(self._number).write_bytes(self._text(released=True))

    def check(self) -> None:
        """Raise BusyError if another process has taken the folder, or removed it."""
        with files.refusals(self.path):
            newest = max(self._numbers(), default=0)
            if newest == self._number:
                return
            owner = self._read(newest) if newest else None
        by = f"has been taken by {_words(owner)}" if owner else "is held no more"
        raise BusyError(
            f"{self.folder} {by}, since this process was not heard of for {LEASE:.0f} s or more; "
            f"nothing more is saved"
        )

    def _renew(self) -> None:
        while not self._closing.wait(RENEWAL):
            self._renewals += 1
            with suppress(BusyError, OSError):  # `check` says so where it matters
                self.check()
                self._object(self._number).write_bytes(self._text())

    def _wait_for(self, number: int) -> None:
        """Return once the owner of this number is gone; BusyError if it is there."""
        first, end = self._read(number), time.monotonic() + LEASE
        if first is None or first.get("released"):
            return
        here = first.get("machine") == self._record["machine"] != ""
        if here and host.birth(first["pid"]) != first["birth"]:
            return
        record, waits = first, not here
        if waits:
            terminal.say(
                f"waiting for up to {LEASE:.0f} s whether {_words(first)} still has {self.folder}"
            )
        while waits and record == first and time.monotonic() < end:
            time.sleep(RENEWAL / 4)
            record = self._read(number)
        if (record == first and waits) or record is None or record.get("released"):
            return
        raise BusyError(
            f"{self.folder} is in use by {_words(record)}; stop it, or give another folder"
        )

    def _text(self, released: bool = False) -> bytes:
        more = {"renewals": self._renewals} | ({"released": True} if released else {})
        return json.dumps(self._record | more).encode()

    def _numbers(self) -> list[int]:
        try:
            return [int(path.name) for path in self.path.iterdir() if path.name.isdigit()]
        except FileNotFoundError:
            return []

    def _object(self, number: int) -> BucketPath:
        return self.path / f"{number:08d}"

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            return json.loads(self._object(number).read_bytes())
        except (FileNotFoundError, ValueError):
            return None


def _words(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']} since {record['started']}"

"""Agreement of the processes of a run: same inputs at the start, same step to stop at."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jaxgen
from jaxgen import settings as sets
from jaxgen import tree
from jaxgen.errors import BusyError
from jaxgen.mesh.group import Group
from jaxgen.run.settings import Settings

EVERY = 1.0  # seconds between exchanges of stop requests
LATE = 10.0  # seconds until a file written by another host must be visible
# A host may have other cores than its neighbours.
OWN = ("data.workers",)


def identity(settings: Settings) -> dict[str, Any]:
    """Return the facts that must be equal in all processes: config, code, JAX version."""
    return keys(settings) | {
        "the code of jaxgen": code(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
    }


def keys(settings: Settings) -> dict[str, str]:
    """Return every key of the config that must be equal in all processes, with its value."""
    rows = tree.flatten(sets.as_dict(settings))
    facts = {path.replace("/", "."): str(value) for path, value in rows.items()}
    return {key: value for key, value in facts.items() if key not in OWN}


def code() -> str:
    """Return the sha256 (hex) of the package's own modules."""
    root, result = Path(jaxgen.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        result.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return result.hexdigest()


def see(group: Group, path: Path) -> None:
    """Raise BusyError in all processes unless each reads the same content as process 0."""
    text = group.sync(f"seeing {path.name}", decide=lambda _: path.read_text())

    def look() -> None:
        end = time.monotonic() + LATE
        while not path.exists() or path.read_text() != text:
            if time.monotonic() > end:
                raise BusyError(
                    f"{path.parent} is not the folder that {group.names[0]} writes; give an --out "
                    f"on a file system that all processes share"
                )
            time.sleep(0.1)

    group.all_ok(f"seen {path.name}", look)


class Stop:
    """Whether to stop, with the same answer in all processes at the same call.

    Any process may get a stop request, but all must stop at the same step. They exchange requests
    about once a second; process 0 sets the number of calls in between. failed: whether a background
    save has failed here; then `fail` is called in all processes, and raises the error.
    """

    def __init__(
        self,
        group: Group,
        told: Callable[[], bool],
        failed: Callable[[], bool],
        fail: Callable[[], None],
    ) -> None:
        self.group, self.told, self.failed, self.fail = group, told, failed, fail
        self.stopped = False
        self._calls, self._next, self._gap = 0, 0, 1
        self._since = time.monotonic()

    def __call__(self) -> bool:
        if self.group.count == 1:
            return self.told()
        self._calls += 1
        self.group.progress()
        if self.stopped or self._calls <= self._next:
            return self.stopped
        state = {"told": self.told(), "failed": self.failed()}
        answer = json.loads(self.group.sync("stop?", json.dumps(state), self._decide))
        if answer["failed"]:
            self.fail()
        self.stopped, self._next = answer["told"], self._calls + answer["skip"]
        return self.stopped

    def _decide(self, values: list[str]) -> str:
        states = [json.loads(value) for value in values]
        now = time.monotonic()
        each = max(now - self._since, 1e-6) / self._gap
        # Compiling makes the first calls slow, so the gap grows by at most 2x at a time.
        self._gap, self._since = max(1, min(int(EVERY / each), 2 * self._gap)), now
        return json.dumps(
            {
                "told": any(state["told"] for state in states),
                "failed": any(state["failed"] for state in states),
                "skip": self._gap - 1,
            }
        )

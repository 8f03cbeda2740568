"""Synchronisation of the processes of one run, with deadlines and errors that name the missing.

Nothing here touches a device. The processes exchange small texts through a key-value store that
process 0 hosts (that of JAX's coordination service), because a collective on devices has no
deadline and its errors name no process.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from jaxgen import errors
from jaxgen.errors import ConfigError, PeerError, UserError

ROOM = "jaxgen/sync"  # prefix of the keys
PATIENCE = 600.0  # seconds that `sync` waits for a process that is alive but does not call it
SLOW = 10.0  # seconds after which a line names the processes waited for
POLL = (0.002, 0.2)  # seconds between polls, at first and at most

T = TypeVar("T")
Decide = Callable[[list[str]], str]


@runtime_checkable
class Store(Protocol):
    """Key-value store of all processes; PeerError if the process that hosts it is lost."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str, seconds: float) -> str | None: ...
    def find(self, prefix: str) -> dict[str, str]: ...
    def delete(self, prefix: str) -> None: ...


class AgreedExit(SystemExit):
    """Raised in all processes of a group at the same place, to exit with the same code."""


@dataclass(frozen=True, eq=False)
class Group:
    """This process and its peers; `ALONE` without any.

    names: a description of each process, "process 1 (host, pid 7)". All processes must call every
    method but `first` in the same order; threads of one process may use different names.
    """

    index: int = 0
    count: int = 1
    names: tuple[str, ...] = ("process 0",)
    store: Store | None = None
    patience: float = PATIENCE
    slow: float = SLOW
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    progress: Callable[[], None] = lambda: None  # to be called at each step, for `mesh.watch`
    _turns: Counter[str] = field(default_factory=Counter)

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes and speaks for all."""
        return self.index == 0

    def sync(
        self,
        name: str,
        value: str = "",
        decide: Decide = lambda values: "",
        *,
        patient: bool = False,
    ) -> str:
        """Return process 0's `decide(values of all processes)`, once all have called this.

        patient: no deadline, as for work that process 0 does alone; a process that dies still
        ends the wait (`mesh.watch`). Raises PeerError naming the missing processes.
        """
        if self.store is None:
            return decide([value])
        turn = self._turns[name]
        self._turns[name] += 1
        prefix = f"{ROOM}/{name}/{turn}"
        limit = None if patient else self.patience
        self.store.set(f"{prefix}/came/{self.index}", value)
        if self.first:
            answer = self._gather(name, prefix, decide, limit)
            if turn:  # all are here, so all have read the answer before
                self.store.delete(f"{ROOM}/{name}/{turn - 1}/")
        else:
            answer = self._answer(name, prefix, limit)
        reply = json.loads(answer)
        if "missing" in reply:
            raise self._absent(name, reply["missing"], reply["seconds"])
        return reply["answer"]

    def barrier(self, name: str) -> None:
        """Wait for all processes; PeerError names the missing."""
        self.sync(name)

    def all_ok(self, name: str, action: Callable[[], T], *, patient: bool = False) -> T:
        """Return this process's `action()`, once it has succeeded in every process.

        A UserError of any process is raised in all, so that they end alike.
        """
        result, own = None, None
        try:
            result = action()
        except UserError as error:
            if self.store is None:
                raise
            own = error
        failure = "" if own is None else json.dumps([type(own).__name__, self.index, str(own)])
        first = self.sync(name, failure, _first_error, patient=patient)
        if own is not None:
            raise own
        if first:
            kind, index, text = json.loads(first)
            raise _error(kind, f"{self.names[index]}: {text}")
        return result  # pyright: ignore[reportReturnType]

    def on_primary(self, name: str, action: Callable[[], Any]) -> None:
        """Run `action` in process 0 while the others wait; its UserError is raised in all."""
        self.all_ok(name, action if self.first else lambda: None, patient=True)

    def leave(self, code: int) -> NoReturn:
        """Exit with this code in all processes, which must all call this."""
        self.barrier("leaving")
        raise AgreedExit(code)

    def agree(self, name: str, facts: Mapping[str, Any]) -> None:
        """Raise ConfigError in every process if a fact differs between two, naming them."""
        if self.store is None:
            return

        def decide(values: list[str]) -> str:
            ours, *others = map(json.loads, values)
            for index, theirs in enumerate(others, 1):
                for key in [*ours, *(key for key in theirs if key not in ours)]:
                    if ours.get(key) != theirs.get(key):
                        return json.dumps([index, key, theirs.get(key), ours.get(key)])
            return ""

        difference = self.sync(name, json.dumps(dict(facts)), decide)
        if difference:
            index, key, theirs, ours = json.loads(difference)
            raise ConfigError(
                f"{self.names[index]} has {key}={theirs!r}, {self.names[0]} has {ours!r}; start "
                f"all processes with the same config, code and data"
            )

    def _gather(self, name: str, prefix: str, decide: Decide, limit: float | None) -> str:
        assert self.store is not None
        began, reported, pause = time.monotonic(), 0.0, POLL[0]
        came = f"{prefix}/came/"
        while True:
            values = {int(k.removeprefix(came)): v for k, v in self.store.find(came).items()}
            waited = time.monotonic() - began
            if len(values) == self.count:
                answer = {"answer": decide([values[index] for index in range(self.count)])}
                break
            missing = [index for index in range(self.count) if index not in values]
            if limit is not None and waited > limit:
                answer = {"missing": missing, "seconds": round(waited)}
                break
            if waited > reported + self.slow:
                reported = waited
                self.say(f"waiting at {name!r} for {waited:.0f} s for {self._words(missing)}")
            time.sleep(pause)
            pause = min(pause * 1.5, POLL[1])
        if reported:
            self.say(f"waited at {name!r} for {waited:.0f} s")
        self.store.set(f"{prefix}/answer", json.dumps(answer))
        return json.dumps(answer)

    def _answer(self, name: str, prefix: str, limit: float | None) -> str:
        assert self.store is not None
        began = time.monotonic()
        # Process 0 gives up first, and knows better who is missing.
        while limit is None or time.monotonic() - began < limit + self.slow:
            answer = self.store.get(f"{prefix}/answer", self.slow)
            if answer is not None:
                return answer
        raise self._absent(name, [0], round(time.monotonic() - began))

    def _absent(self, name: str, missing: list[int], seconds: int) -> PeerError:
        verb = "has" if len(missing) == 1 else "have"
        return PeerError(
            f"{self._words(missing)} {verb} not come to {name!r} within {seconds} s; see what it "
            f"does there, then start all processes again"
        )

    def _words(self, indices: list[int]) -> str:
        more = f" and {len(indices) - 8} more" if len(indices) > 8 else ""
        return ", ".join(self.names[index] for index in indices[:8]) + more


ALONE = Group()


def _first_error(values: list[str]) -> str:
    return next((value for value in values if value), "")


def _error(kind: str, text: str) -> UserError:
    return getattr(errors, kind, PeerError)(text)

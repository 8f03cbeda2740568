"""The processes of one run, and how they meet: named, timed, and naming who is missing.

Nothing here touches a device. The processes write to a store of small texts that process 0 keeps
(JAX's coordination service has one), so that a meeting has a deadline and an error a culprit; a
collective on devices has neither.
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

ROOM = "jaxgen/meet"  # where the keys of meetings begin
PATIENCE = 600.0  # seconds that a meeting waits for a process that is alive but does not come
SLOW = 10.0  # seconds after which a line says who is waited for
POLL = (0.002, 0.2)  # seconds between looks, at first and at most

T = TypeVar("T")
Decide = Callable[[list[str]], str]


@runtime_checkable
class Store(Protocol):
    """Texts by key that all processes read and write; PeerError if its keeper is gone."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str, seconds: float) -> str | None: ...
    def find(self, prefix: str) -> dict[str, str]: ...
    def delete(self, prefix: str) -> None: ...


class AgreedExit(SystemExit):
    """The end of all processes of a group, at the same place and with the same code."""


@dataclass(frozen=True, eq=False)
class Group:
    """This process and its peers; `ALONE` where there are none.

    names: each process in words, "process 1 (host, pid 7)". Every method but `first` must be
    called by all processes in the same order; threads of one process may use different names.
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

    def meet(
        self,
        name: str,
        value: str = "",
        decide: Decide = lambda values: "",
        *,
        patient: bool = False,
    ) -> str:
        """Return what process 0 decides of the values of all processes, once all have come.

        patient: wait as long as it takes, as for work that process 0 does alone; a process that
        has died still ends the wait (`mesh.watch`). Raises PeerError that names the missing.
        """
        if self.store is None:
            return decide([value])
        turn = self._turns[name]
        self._turns[name] += 1
        place = f"{ROOM}/{name}/{turn}"
        limit = None if patient else self.patience
        self.store.set(f"{place}/came/{self.index}", value)
        if self.first:
            answer = self._gather(name, place, decide, limit)
            if turn:  # all are here, so all have read the answer before
                self.store.delete(f"{ROOM}/{name}/{turn - 1}/")
        else:
            answer = self._answer(name, place, limit)
        found = json.loads(answer)
        if "missing" in found:
            raise self._absent(name, found["missing"], found["seconds"])
        return found["answer"]

    def barrier(self, name: str) -> None:
        """Return once all processes have come; PeerError names those that do not."""
        self.meet(name)

    def together(self, name: str, action: Callable[[], T], *, patient: bool = False) -> T:
        """Return what `action` returns here, once it has succeeded in every process.

        A UserError of any process is raised in all, so that they end alike.
        """
        result, own = None, None
        try:
            result = action()
        except UserError as error:
            if self.store is None:
                raise
            own = error
        told = "" if own is None else json.dumps([type(own).__name__, self.index, str(own)])
        found = self.meet(name, told, _first_told, patient=patient)
        if own is not None:
            raise own
        if found:
            kind, index, text = json.loads(found)
            raise _error(kind, f"{self.names[index]}: {text}")
        return result  # pyright: ignore[reportReturnType]

    def lead(self, name: str, action: Callable[[], Any]) -> None:
        """Let process 0 act while the others wait; its UserError is raised in all."""
        self.together(name, action if self.first else lambda: None, patient=True)

    def leave(self, code: int) -> NoReturn:
        """End all processes with this exit code, which they have decided on together."""
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

        found = self.meet(name, json.dumps(dict(facts)), decide)
        if found:
            index, key, theirs, ours = json.loads(found)
            raise ConfigError(
                f"{self.names[index]} has {key}={theirs!r}, {self.names[0]} has {ours!r}; start "
                f"all processes with the same config, code and data"
            )

    def _gather(self, name: str, place: str, decide: Decide, limit: float | None) -> str:
        assert self.store is not None
        began, said, pause = time.monotonic(), 0.0, POLL[0]
        came = f"{place}/came/"
        while True:
            found = {int(k.removeprefix(came)): v for k, v in self.store.find(came).items()}
            waited = time.monotonic() - began
            if len(found) == self.count:
                answer = {"answer": decide([found[index] for index in range(self.count)])}
                break
            missing = [index for index in range(self.count) if index not in found]
            if limit is not None and waited > limit:
                answer = {"missing": missing, "seconds": round(waited)}
                break
            if waited > said + self.slow:
                said = waited
                self.say(f"waiting at {name!r} for {waited:.0f} s for {self._words(missing)}")
            time.sleep(pause)
            pause = min(pause * 1.5, POLL[1])
        if said:
            self.say(f"waited at {name!r} for {waited:.0f} s")
        self.store.set(f"{place}/answer", json.dumps(answer))
        return json.dumps(answer)

    def _answer(self, name: str, place: str, limit: float | None) -> str:
        assert self.store is not None
        began = time.monotonic()
        # Process 0 gives up first, and knows better who is missing.
        while limit is None or time.monotonic() - began < limit + self.slow:
            found = self.store.get(f"{place}/answer", self.slow)
            if found is not None:
                return found
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


def _first_told(values: list[str]) -> str:
    return next((value for value in values if value), "")


def _error(kind: str, text: str) -> UserError:
    return getattr(errors, kind, PeerError)(text)

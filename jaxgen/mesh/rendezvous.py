"""Waits for all processes before JAX connects them, and checks that they fit together.

`jax.distributed.initialize` aborts the program when a process is missing and does not name it. So
all processes connect to process 0 first, at the address that JAX's service uses afterwards.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import random
import selectors
import socket
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import jaxgen
from jaxgen.errors import BusyError, ConfigError, PeerError

RETRY = 0.2  # seconds between calls, of few processes; of a thousand it is AMONG more
AMONG = 1000
LONGEST = 1 << 20  # bytes of a message
VISITS = 64  # connections at once: a process holds none while it waits
VISIT = 5.0  # seconds that one may last
PARTING = 5.0  # seconds, beside a turn of all calls, in which the others fetch the answer
REFUSAL = "JAXGEN_TOKEN is not that of process 0; set it alike in all processes, or in none"


def describe_self(index: int) -> str:
    """Describe this process, "process 3 (host, pid 7)"."""
    return f"process {index} ({socket.gethostname()}, pid {os.getpid()})"


def wait_for_all(
    host: str, port: int, count: int, index: int, seconds: float, *, token: str = ""
) -> tuple[str, ...]:
    """Return the descriptions of all processes, once each of them has called.

    token: a secret of the run; who has another is refused, and keeps nobody waiting.
    Raises PeerError naming missing processes or an address without an answer, ConfigError if two
    processes claim one index or count differently, BusyError for a port that is taken.
    """
    if index == 0:
        return _receive(host, port, count, seconds, token)
    return _call(host, port, count, index, seconds, token)


@dataclass(eq=False)
class Visit:
    """One connection to process 0, from a call to the end that the caller makes of it."""

    link: socket.socket
    until: float
    received: bytes = b""
    answered: bool = False


@dataclass
class Register:
    """What process 0 knows: who came, and what to answer once that is settled."""

    count: int
    token: str = ""
    callers: dict[int, tuple[str, str]] = field(default_factory=dict)  # (call, name)
    heard: set[str] = field(default_factory=set)  # all calls
    informed: set[str] = field(default_factory=set)  # those that were told how it ended
    problem: ConfigError | PeerError | None = None
    settled: bool = False

    @property
    def missing(self) -> list[int]:
        return [index for index in range(1, self.count) if index not in self.callers]

    @property
    def names(self) -> list[str]:
        return [describe_self(0), *(self.callers[index][1] for index in sorted(self.callers))]

    def answer(self, about: dict[str, Any]) -> dict[str, Any]:
        """Note a caller, and return what to tell it: to wait, who is there, or what is wrong."""
        call = about["call"]
        if not hmac.compare_digest(about.get("token", "").encode(), self.token.encode()):
            return {"error": REFUSAL, "kind": ConfigError.__name__}
        if not self.settled:
            self.heard.add(call)
            self.problem = self.problem or _problem(about, self.callers, self.count)
            if self.problem is None:
                self.callers[about["process"]] = call, about["name"]
            return {"wait": pause(self.count)}
        self.informed.add(call)
        if self.problem is not None:
            return {"error": str(self.problem), "kind": type(self.problem).__name__}
        return {"names": self.names}


def pause(count: int) -> float:
    """Return the seconds between two calls of one of `count` processes."""
    return RETRY * (1 + count / AMONG * 10)


def _receive(host: str, port: int, count: int, seconds: float, token: str) -> tuple[str, ...]:
    register, deadline = Register(count, token), time.monotonic() + seconds
    with _listening(host, port) as server, selectors.DefaultSelector() as selector:
        door = Door(server, selector, register)
        try:
            door.serve(lambda: register.problem is not None or not register.missing, deadline)
            if register.problem is None and register.missing:
                register.problem = PeerError(
                    f"{_few(register.missing)} of {count} did not come to {host}:{port} within "
                    f"{seconds:.0f} s; start all, with the same --coordinator and --processes"
                )
            register.settled = True
            last = time.monotonic() + PARTING + 2 * pause(count)
            door.serve(lambda: register.heard <= register.informed and not door.visits, last)
        finally:
            door.close()
    if register.problem is not None:
        raise register.problem
    calls = register.callers.items()
    if gone := sorted(index for index, (call, _) in calls if call not in register.informed):
        raise PeerError(
            f"{_few(gone)} of {count} came to {host}:{port} and vanished; see why, and start all "
            f"again"
        )
    return tuple(register.names)


def _few(indices: list[int]) -> str:
    more = f" and {len(indices) - 8} more" if len(indices) > 8 else ""
    return ", ".join(f"process {index}" for index in indices[:8]) + more


def _listening(host: str, port: int) -> socket.socket:
    """Return a server at the coordinator's address alone, or at all where that is not our own."""
    places: list[tuple[Any, Any]] = []
    with suppress(OSError):
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = [(family, place) for family, *_, place in addresses]
    both = socket.has_dualstack_ipv6()
    everywhere = {"family": socket.AF_INET6, "dualstack_ipv6": True} if both else {}
    try:
        for family, place in places:
            try:
                return socket.create_server(place[:2], family=family, backlog=socket.SOMAXCONN)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        return socket.create_server(("", port), backlog=socket.SOMAXCONN, **everywhere)
    except OSError as error:
        raise BusyError(
            f"port {port} of {host} can't be had ({error.strerror}); stop what uses it, or give "
            f"another --coordinator to all processes"
        ) from error


class Door:
    """Answers calls, few at a time, until a condition holds."""

    def __init__(
        self, server: socket.socket, selector: selectors.BaseSelector, register: Register
    ) -> None:
        self.server, self.selector, self.register = server, selector, register
        self.visits: set[Visit] = set()
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)

    def serve(self, until: Callable[[], bool], deadline: float) -> None:
        """Answer until `until()` or the deadline."""
        while not until() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self.selector.select(min(left, VISIT)):
                if key.data is None:
                    self._let_in()
                else:
                    self._hear(key.data)
            for visit in [one for one in self.visits if one.until < time.monotonic()]:
                self._end(visit, reset=True)

    def close(self) -> None:
        """End all visits."""
        for visit in [*self.visits]:
            self._end(visit, reset=True)

    def _let_in(self) -> None:
        with suppress(OSError):
            link, _ = self.server.accept()
            link.setblocking(False)
            visit = Visit(link, time.monotonic() + VISIT)
            self.visits.add(visit)
            self.selector.register(link, selectors.EVENT_READ, visit)
        if len(self.visits) >= VISITS:  # the others wait in the system's queue
            self.selector.unregister(self.server)

    def _hear(self, visit: Visit) -> None:
        try:
            part = visit.link.recv(4096)
        except OSError:
            part = b""
        visit.received += part
        if not part:
            self._end(visit)
        elif not visit.answered and (b"\n" in part or len(visit.received) > LONGEST):
            about = _about(visit.received)
            if about is None:  # a port scanner, or a health check
                self._end(visit, reset=True)
                return
            visit.answered = True
            line = json.dumps(self.register.answer(about)).encode() + b"\n"
            with suppress(OSError):
                visit.link.settimeout(VISIT)
                visit.link.sendall(line)
                visit.link.setblocking(False)

    def _end(self, visit: Visit, *, reset: bool = False) -> None:
        # The side that closes first keeps the port in TIME_WAIT, and we need it again: a caller
        # that does not close is cut off without one.
        if reset:
            with suppress(OSError):
                now = struct.pack("ii", 1, 0)
                visit.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        if len(self.visits) >= VISITS:
            self.selector.register(self.server, selectors.EVENT_READ)
        self.selector.unregister(visit.link)
        visit.link.close()
        self.visits.discard(visit)


def _about(received: bytes) -> dict[str, Any] | None:
    try:
        about = json.loads(received)
        valid = all(type(about[key]) is int for key in ("process", "processes"))
        valid = valid and all(isinstance(about[key], str) for key in ("name", "jaxgen", "call"))
        valid = valid and isinstance(about.get("token", ""), str)
        return about if valid else None
    except (ValueError, KeyError, TypeError):
        return None


def _problem(
    about: dict[str, Any], callers: dict[int, tuple[str, str]], count: int
) -> ConfigError | None:
    index, name = about["process"], about["name"]
    if about.get("jaxgen") != jaxgen.__version__:
        return ConfigError(
            f"{name} runs jaxgen {about.get('jaxgen')}, {describe_self(0)} {jaxgen.__version__}; "
            f"install one version everywhere"
        )
    if about["processes"] != count or not 0 < index < count:
        return ConfigError(
            f"{name} was started with --processes {about['processes']} --process {index}, "
            f"{describe_self(0)} with --processes {count}; give all the same number"
        )
    call, other = callers.get(index, (about["call"], name))
    if call != about["call"]:  # the same call comes again: it waits, or its connection broke
        return ConfigError(
            f"{other} and {name} are both started with --process {index}; "
            f"give each its own, from 0 to {count - 1}"
        )
    return None


def _call(
    host: str, port: int, count: int, index: int, seconds: float, token: str
) -> tuple[str, ...]:
    deadline = time.monotonic() + seconds
    about = {
        "jaxgen": jaxgen.__version__,
        "process": index,
        "processes": count,
        "name": describe_self(index),
        "call": uuid.uuid4().hex,
        "token": token,
    }
    while True:
        reason, rest = "nobody answers", RETRY
        try:
            with socket.create_connection((host, port), timeout=VISIT) as link:
                link.sendall(json.dumps(about).encode() + b"\n")
                with link.makefile("rb") as file:
                    answer = _answer(file.readline(LONGEST))
            if answer is None:
                reason = "what answers is not process 0 of jaxgen"
            elif "wait" not in answer:
                break
            else:
                reason, rest = "it waits for others, then no longer answers", answer["wait"]
                deadline = max(deadline, time.monotonic() + 3 * rest)
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise PeerError(
                f"process 0 is not at {host}:{port} ({reason}), asked for {seconds:.0f} s; check "
                f"--coordinator, that process 0 was started, and the firewall between"
            )
        time.sleep(rest * random.SystemRandom().uniform(0.5, 1.5))
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in (ConfigError, PeerError)}
        raise kinds.get(answer.get("kind", ""), PeerError)(answer["error"])
    return tuple(answer["names"])


def _answer(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return (
        answer if isinstance(answer, dict) and answer.keys() & {"names", "error", "wait"} else None
    )

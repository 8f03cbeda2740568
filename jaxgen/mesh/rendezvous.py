"""Before JAX connects its processes: do all of them come, each once, and of one kind?

JAX's own start ends the whole program when somebody is missing, and does not say who. So the
processes call on process 0 first, at the address that JAX's service takes over afterwards.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import jaxgen
from jaxgen.errors import BusyError, ConfigError, PeerError

RETRY = 0.2  # seconds between calls on a process 0 that is not there yet
LONGEST = 1 << 20  # bytes of a message


def called(index: int) -> str:
    """Return this process in words."""
    return f"process {index} ({socket.gethostname()}, pid {os.getpid()})"


def meet(host: str, port: int, count: int, index: int, seconds: float) -> tuple[str, ...]:
    """Return all processes in words, once each of them has come.

    Raises PeerError that names who is missing or the address at which nobody answers, ConfigError
    if two processes claim one index or count differently, BusyError for a port that is taken.
    """
    if index == 0:
        return _receive(host, port, count, seconds)
    return _call(host, port, count, index, seconds)


@dataclass
class _Guest:
    link: socket.socket
    heard: bytes = b""
    about: dict[str, Any] = field(default_factory=dict)


def _receive(host: str, port: int, count: int, seconds: float) -> tuple[str, ...]:
    deadline = time.monotonic() + seconds
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        door = socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both)
    except OSError as error:
        raise BusyError(
            f"port {port} of {host} can't be had ({error.strerror}); stop what uses it, or give "
            f"another --coordinator to all processes"
        ) from error
    guests: list[_Guest] = []
    with door, selectors.DefaultSelector() as ears:
        door.setblocking(False)
        ears.register(door, selectors.EVENT_READ)
        try:
            problem = _listen(door, ears, guests, count, deadline)
            came = {guest.about["process"]: guest for guest in guests if guest.about}
            missing = [index for index in range(1, count) if index not in came]
            error: Exception | None = problem
            if problem is None and missing:
                names = ", ".join(f"process {index}" for index in missing[:8])
                more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
                error = PeerError(
                    f"{names}{more} of {count} did not come to {host}:{port} within "
                    f"{seconds:.0f} s; start all, with the same --coordinator and --processes"
                )
            names = [called(0), *(came[index].about["name"] for index in sorted(came))]
            answer = {"names": names} if error is None else {"error": str(error)}
            kind = {} if error is None else {"kind": type(error).__name__}
            for guest in guests:
                with suppress(OSError):
                    guest.link.sendall(json.dumps(answer | kind).encode() + b"\n")
            if error is not None:
                raise error
            _see_off(guests)
            return tuple(names)
        finally:
            for guest in guests:
                guest.link.close()


def _listen(
    door: socket.socket,
    ears: selectors.BaseSelector,
    guests: list[_Guest],
    count: int,
    deadline: float,
) -> ConfigError | None:
    """Fill `guests` until all have said who they are; return what is wrong with one of them."""
    came: dict[int, _Guest] = {}
    while len(came) < count - 1 and (left := deadline - time.monotonic()) > 0:
        for key, _ in ears.select(left):
            if key.fileobj is door:
                link, _ = door.accept()
                link.settimeout(5.0)
                guests.append(_Guest(link))
                ears.register(link, selectors.EVENT_READ, guests[-1])
                continue
            guest: _Guest = key.data
            with suppress(OSError):
                guest.heard += (part := guest.link.recv(4096))
                if part and b"\n" not in guest.heard and len(guest.heard) < LONGEST:
                    continue
            ears.unregister(guest.link)
            about = _about(guest.heard)
            if about is None:  # a port scanner, or a health check
                continue
            guest.about = about
            if problem := _problem(about, came, count):
                return problem
            came[about["process"]] = guest
    return None


def _about(heard: bytes) -> dict[str, Any] | None:
    try:
        about = json.loads(heard)
        whole = all(type(about[key]) is int for key in ("process", "processes"))
        return about if whole and isinstance(about["name"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def _problem(about: dict[str, Any], came: dict[int, _Guest], count: int) -> ConfigError | None:
    index, name = about["process"], about["name"]
    if about.get("jaxgen") != jaxgen.__version__:
        return ConfigError(
            f"{name} runs jaxgen {about.get('jaxgen')}, {called(0)} {jaxgen.__version__}; install "
            f"one version everywhere"
        )
    if about["processes"] != count or not 0 < index < count:
        return ConfigError(
            f"{name} was started with --processes {about['processes']} --process {index}, "
            f"{called(0)} with --processes {count}; give all the same number"
        )
    if index in came:
        return ConfigError(
            f"{came[index].about['name']} and {name} are both started with --process {index}; "
            f"give each its own, from 0 to {count - 1}"
        )
    return None


def _see_off(guests: list[_Guest]) -> None:
    # Who closes first keeps the port busy for a while, and we need it again.
    for guest in guests:
        with suppress(OSError):
            guest.link.recv(1)


def _call(host: str, port: int, count: int, index: int, seconds: float) -> tuple[str, ...]:
    deadline = time.monotonic() + seconds
    about = {
        "jaxgen": jaxgen.__version__,
        "process": index,
        "processes": count,
        "name": called(index),
    }
    while True:
        reason = "nobody answers"
        try:
            with socket.create_connection((host, port), timeout=max(RETRY, 5.0)) as link:
                link.sendall(json.dumps(about).encode() + b"\n")
                link.settimeout(max(RETRY, deadline + 5 - time.monotonic()))
                with link.makefile("rb") as file:
                    answer = _answer(file.readline(LONGEST))
            if answer is not None:
                break
            reason = "what answers is not process 0 of jaxgen"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise PeerError(
                f"process 0 is not at {host}:{port} ({reason}), asked for {seconds:.0f} s; check "
                f"--coordinator, that process 0 was started, and the firewall between"
            )
        time.sleep(RETRY)
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in (ConfigError, PeerError)}
        raise kinds.get(answer.get("kind", ""), PeerError)(answer["error"])
    return tuple(answer["names"])


def _answer(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and answer.keys() & {"names", "error"} else None

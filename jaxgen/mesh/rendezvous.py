"""Waits for all processes before JAX connects them, and checks that they fit together.

`jax.distributed.initialize` aborts the program when a process is missing and does not name it. So
all processes connect to process 0 first, at the address that JAX's service uses afterwards.
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


def describe_self(index: int) -> str:
    """Describe this process, "process 3 (host, pid 7)"."""
    return f"process {index} ({socket.gethostname()}, pid {os.getpid()})"


def wait_for_all(host: str, port: int, count: int, index: int, seconds: float) -> tuple[str, ...]:
    """Return the descriptions of all processes, once each of them has connected.

    Raises PeerError naming missing processes or an address without an answer, ConfigError
    if two processes claim one index or count differently, BusyError for a port that is taken.
    """
    if index == 0:
        return _receive(host, port, count, seconds)
    return _call(host, port, count, index, seconds)


@dataclass
class Peer:
    link: socket.socket
    received: bytes = b""
    about: dict[str, Any] = field(default_factory=dict)


def _receive(host: str, port: int, count: int, seconds: float) -> tuple[str, ...]:
    deadline = time.monotonic() + seconds
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both)
    except OSError as error:
        raise BusyError(
            f"port {port} of {host} can't be had ({error.strerror}); stop what uses it, or give "
            f"another --coordinator to all processes"
        ) from error
    peers: list[Peer] = []
    with server, selectors.DefaultSelector() as selector:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        try:
            problem = _accept_peers(server, selector, peers, count, deadline)
            arrived = {peer.about["process"]: peer for peer in peers if peer.about}
            missing = [index for index in range(1, count) if index not in arrived]
            error: Exception | None = problem
            if problem is None and missing:
                names = ", ".join(f"process {index}" for index in missing[:8])
                more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
                error = PeerError(
                    f"{names}{more} of {count} did not come to {host}:{port} within "
                    f"{seconds:.0f} s; start all, with the same --coordinator and --processes"
                )
            names = [describe_self(0), *(arrived[index].about["name"] for index in sorted(arrived))]
            answer = {"names": names} if error is None else {"error": str(error)}
            kind = {} if error is None else {"kind": type(error).__name__}
            for peer in peers:
                with suppress(OSError):
                    peer.link.sendall(json.dumps(answer | kind).encode() + b"\n")
            if error is not None:
                raise error
            _wait_for_close(peers)
            return tuple(names)
        finally:
            for peer in peers:
                peer.link.close()


def _accept_peers(
    server: socket.socket,
    selector: selectors.BaseSelector,
    peers: list[Peer],
    count: int,
    deadline: float,
) -> ConfigError | None:
    """Fill `peers` until all are identified; return the first error of one of them."""
    arrived: dict[int, Peer] = {}
    while len(arrived) < count - 1 and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            if key.fileobj is server:
                link, _ = server.accept()
                link.settimeout(5.0)
                peers.append(Peer(link))
                selector.register(link, selectors.EVENT_READ, peers[-1])
                continue
            peer: Peer = key.data
            with suppress(OSError):
                peer.received += (part := peer.link.recv(4096))
                if part and b"\n" not in peer.received and len(peer.received) < LONGEST:
                    continue
            selector.unregister(peer.link)
            about = _about(peer.received)
            if about is None:  # a port scanner, or a health check
                continue
            peer.about = about
            if problem := _problem(about, arrived, count):
                return problem
            arrived[about["process"]] = peer
    return None


def _about(received: bytes) -> dict[str, Any] | None:
    try:
        about = json.loads(received)
        valid = all(type(about[key]) is int for key in ("process", "processes"))
        return about if valid and isinstance(about["name"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def _problem(about: dict[str, Any], arrived: dict[int, Peer], count: int) -> ConfigError | None:
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
    if index in arrived:
        return ConfigError(
            f"{arrived[index].about['name']} and {name} are both started with --process {index}; "
            f"give each its own, from 0 to {count - 1}"
        )
    return None


def _wait_for_close(peers: list[Peer]) -> None:
    # The side that closes first keeps the port in TIME_WAIT, and we need it again.
    for peer in peers:
        with suppress(OSError):
            peer.link.recv(1)


def _call(host: str, port: int, count: int, index: int, seconds: float) -> tuple[str, ...]:
    deadline = time.monotonic() + seconds
    about = {
        "jaxgen": jaxgen.__version__,
        "process": index,
        "processes": count,
        "name": describe_self(index),
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

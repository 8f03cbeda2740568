"""What every request passes: its id, the key, the log and the counters; bodies within bounds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse

from jaxgen.serve.metrics import Metrics
from jaxgen.serve.problems import Problem

HEAD, LARGEST = 16 << 10, 2 << 20  # bytes of a request's head, and of its body
BODY_SECONDS, WRITE_SECONDS, LINGER = 30.0, 30.0, 0.5
OPEN = ("/health", "/ready", "/")  # what needs no key: a state, and a page that asks for one
GONE = 499  # in the log: the client went away
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG = logging.getLogger("jaxgen.serve.access")


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, keys: Sequence[str], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, about = time.monotonic(), {"id": _id_of(scope), "status": GONE}
        scope.setdefault("state", {})["about"] = about
        self.metrics.running.inc()

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                about["status"] = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", about["id"].encode())]
                message = {**message, "headers": headers}
            await asyncio.wait_for(send(message), WRITE_SECONDS)

        try:
            if _head_size(scope) > HEAD:
                await _refuse(Problem(f"the head has more than {HEAD} bytes", 431), scope, answer)
            elif self.keys and scope["path"] not in OPEN and not self._allowed(scope):
                why = "the API key is missing or wrong; send Authorization: Bearer"
                await _refuse(Problem(why, 401), scope, answer)
            else:
                await self.app(scope, receive, answer)
        except TimeoutError:  # the client does not read
            about["status"] = GONE
            raise
        finally:
            self.metrics.running.dec()
            seconds = time.monotonic() - begun
            self.metrics.done(scope, about["status"], seconds)
            _LOG.info(_line(scope, about, seconds))

    def _allowed(self, scope: Any) -> bool:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(sent) != 1 or sent[0][:7].lower() != b"bearer ":
            return False
        digest = hashlib.sha256(sent[0][7:].strip()).digest()
        return any([hmac.compare_digest(digest, key) for key in self.keys])  # noqa: C419  all of them


def _id_of(scope: Any) -> str:
    """Return the client's id of a request if it is one that a log can hold, else one of ours."""
    sent = [value for name, value in scope["headers"] if name == b"x-request-id"]
    text = sent[0].decode("latin-1") if len(sent) == 1 else ""
    return text if _ID.fullmatch(text) else secrets.token_hex(12)


def _head_size(scope: Any) -> int:
    """Return the bytes of a request's head, nearly."""
    path = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    return path + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _line(scope: Any, about: dict[str, Any], seconds: float) -> str:
    """Return what the log holds of a request: nothing that somebody wrote to the model."""
    client = (scope.get("client") or ["-"])[0]
    row = {"time": round(time.time(), 3), "client": client, "method": scope["method"]}
    row |= {"path": scope["path"][:120], "seconds": round(seconds, 4)} | about
    return json.dumps(row)


async def _refuse(problem: Problem, scope: Any, send: Any) -> None:
    close = {"connection": "close"} if problem.status == 431 else {}
    answer = JSONResponse(problem.body, problem.status, problem.headers | close)
    await answer(scope, None, send)  # pyright: ignore[reportArgumentType]  it reads nothing


async def read_body(scope: Any, receive: Any) -> bytes:
    """Return the body of a request; Problem 415, 413 or 408 before all of it has come."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Problem("send Content-Type: application/json", 415)
    length, parts, size = headers.get(b"content-length", b"0"), [], 0
    if length.isdigit() and int(length[:20]) > LARGEST:
        await _too_large(receive)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message.get("body", b""))
                if size > LARGEST:
                    await _too_large(receive)
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Problem(f"the body did not come within {BODY_SECONDS:g} seconds", 408) from None


async def _too_large(receive: Any) -> None:
    """Raise Problem 413; who is still sending reads it only once a little more has been taken."""
    left = 2 * LARGEST
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])
    raise Problem(f"the body is larger than {LARGEST} bytes", 413)


class ClientGone(Exception):  # noqa: N818  no error of ours
    """The client has closed the connection."""


async def while_there(receive: Any, work: Any) -> Any:
    """Return what a coroutine gives; it is cancelled, and ClientGone raised, if the client goes."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)

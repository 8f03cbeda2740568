"""uvicorn with our limits: of headers in bytes and seconds, and a SIGTERM that drains first."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxgen.serve.guard import HEAD

HEADER_SECONDS, IDLE_SECONDS = 10.0, 60
DRAIN_SECONDS = 30.0


class Protocol(H11Protocol):
    """HTTP/1.1 by h11: a head has to come in time, and a wrong one is told what is wrong."""

    _late: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Take bytes; after the head of a first one, a further request has to come in time, too."""
        waiting = self.conn.their_state is h11.IDLE
        super().data_received(data)
        begun = self.conn.their_state is not h11.IDLE
        if begun and self._late is not None:
            self._late.cancel()
            self._late = None
        elif waiting and not begun and self._late is None and data:
            self._late = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the wait."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _too_late(self) -> None:
        if not self.transport.is_closing() and self.conn.our_state is h11.IDLE:
            self._send_status(408)

    def send_400_response(self, msg: str) -> None:
        """Send what h11 says of a request that is none: 400, or 431 for a head that is too long."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_status(status)
        else:
            self.transport.close()

    def _send_status(self, status: int) -> None:
        phrase = HTTPStatus(status).phrase.encode()
        headers = [("connection", "close"), ("content-length", str(len(phrase)))]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=phrase),
            h11.Data(data=phrase),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Listener(uvicorn.Server):
    """A server that ends with 0 after SIGTERM or SIGINT, once what runs has ended.

    drain: refuses new requests with 503 while those that run are finished, for so many seconds.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[float], bool]) -> None:
        super().__init__(config)
        self.drain, self.told = drain, False

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain at the first signal; end at once at the second."""
        if self.told:
            self.force_exit = self.should_exit = True
            self._captured_signals.append(sig)
            return
        self.told = True
        threading.Thread(target=self._end, name="jaxgen-drain", daemon=True).start()

    def _end(self) -> None:
        name = signal.Signals.SIGTERM.name
        print(f"draining for at most {DRAIN_SECONDS:g} s; a second {name} ends it", file=sys.stderr)
        self.drain(DRAIN_SECONDS)
        self.should_exit = True


def listener(app: Any, drain: Callable[[float], bool]) -> Listener:
    """Return a server of an app; its `run` takes the sockets that it listens on."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=5,
    )
    return Listener(config, drain)

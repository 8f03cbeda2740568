"""A real server on the loopback, and what sends to it."""

import contextlib
import http.client
import json
import socket
import threading
import time
from types import SimpleNamespace

from jaxgen.serve import app, listen


@contextlib.contextmanager
def serving(models, **how):
    """Yield a running server: .port, .app, .send(...)."""
    asgi = app(models, **{"warm": False} | how)
    state = asgi.state.server
    server, listener = listen.listener(asgi, state.drain), socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # what is not read is felt
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = listener.getsockname()[1]
    try:
        engine = next(iter(state.models.values())).engine
        yield SimpleNamespace(
            engine=engine, port=port, app=asgi, state=state, send=Client(port), server=server
        )
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """Sends requests: client("/v1/models") -> .status, .headers, .json, .text."""

    def __init__(self, port):
        self.port = port

    def __call__(self, path, body=None, *, method=None, headers=None, raw=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None else {}
        with contextlib.closing(connection):
            connection.request(
                method or ("GET" if data is None else "POST"), path, data, kind | (headers or {})
            )
            found = connection.getresponse()
            text = found.read().decode()
        is_json = "json" in found.headers.get("content-type", "")
        return SimpleNamespace(
            status=found.status,
            headers=found.headers,
            text=text,
            json=json.loads(text) if is_json and text else None,
        )

    def events(self, path, body):
        """Return the objects of a stream, which has to end as it should."""
        found = self(path, body | {"stream": True})
        assert found.status == 200, found.text
        rows = [line[6:] for line in found.text.split("\n") if line.startswith("data: ")]
        if rows[-1] == "[DONE]":
            rows.pop()
        return [json.loads(row) for row in rows]


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

"""`jaxgen serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen.cli import exits, flags, inputs, paths, start, texts
from jaxgen.cli.arguments import REAL, Step, at_least
from jaxgen.cli.index import Documents, open_index
from jaxgen.config import Weights
from jaxgen.errors import BusyError, ConfigError, MissingPackageError

KEY = "JAXGEN_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Who may ask, and where."""

    host: Annotated[str, Parameter(help="address to listen on")] = "127.0.0.1"
    port: Annotated[int, at_least(0), Parameter(help="0 takes a free one")] = 8000
    api_key_file: Annotated[
        str | None, Parameter(help=f"a file with a key a line; by default ${KEY} holds one")
    ] = None
    insecure: Annotated[bool, Parameter(help="let others than this machine ask without a key")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Arguments of the engine."""

    slots: Annotated[int, at_least(1), Parameter(help="texts decoded side by side")] = 8
    queue: Annotated[int, at_least(1), Parameter(help="texts that may wait; then 429")] = 64
    context: Annotated[
        int | None, at_least(2), Parameter(help="tokens of a prompt and its text at most")
    ] = None
    cache: Annotated[Literal["plain", "int8"], Parameter(help="numbers of the key/value cache")] = (
        "plain"
    )
    lookup: Annotated[
        int, at_least(0), Parameter(help="tokens a step guesses from the text; for many quotes")
    ] = 0


FREE = Parameter(name="*")


def serve(
    model: texts.Folder,
    /,
    *more: Annotated[str, Parameter(help="further models or adapters")],
    name: Annotated[
        list[str] | None,
        Parameter(help="what requests call a model; repeatable", consume_multiple=False),
    ] = None,
    listening: Annotated[Listening, FREE] = Listening(),
    decoding: Annotated[Decoding, FREE] = Decoding(),
    weights: Annotated[
        Weights, Parameter(help="int8: a byte each; stored: as a GGUF file has them")
    ] = "plain",
    request_seconds: Annotated[
        float | None, REAL, Parameter(help="end an answer where it is after so long")
    ] = None,
    users: Annotated[
        str | None, Parameter(help="a folder of users, whom requests name by user, or MODEL/USER")
    ] = None,
    policy: Annotated[str | None, Parameter(help="a YAML file of what texts may not hold")] = None,
    index: Documents = None,
    lenient: Annotated[
        bool, Parameter(help="leave out fields of requests that are unknown or not supported")
    ] = False,
    step: Step = None,
) -> None:
    """Answer over HTTP in the form of OpenAI's API, with a page to chat on at /.

    Requests are decoded together, each as if it were alone. /ready answers once all
    programs are compiled, /health at once; /metrics is for Prometheus. SIGTERM ends
    it when all that runs has ended. Extra [serve] installs what it needs.

    For example:
        jaxgen serve smollm2
        jaxgen serve runs/my models/qwen --port 9000 --slots 16
        jaxgen serve runs/my --users data/users
        jaxgen serve smollm2 --index docs.index
        JAXGEN_API_KEY=... jaxgen serve runs/my --host 0.0.0.0
    """
    keys = _keys_of(listening)
    if request_seconds is not None and request_seconds <= 0:
        raise ConfigError(f"--request-seconds {request_seconds} must be greater than 0")
    folders = [model, *more]
    if users is not None and more:
        raise ConfigError("--users are of one model; serve it alone")
    if users is not None and not Path(users).is_dir():
        raise ConfigError(f"--users {users} is no folder; make it, with a folder for each user")
    homes = [paths.adapted(folder, step) for folder in folders]
    names = _names(name or [], folders)
    with closing(_bound(listening)) as listener:
        url = _url(listening.host, listener)
        start.prepare_jax(paths.cache())
        app, listen = _modules()
        sessions = {}
        for called, home in zip(names, homes, strict=True):
            sessions[called] = _open(called, home, weights, users, decoding.slots, policy)
        with flags.named():
            asgi = app(
                sessions,
                keys=keys,
                seconds=request_seconds,
                lenient=lenient,
                index=None if index is None else open_index(index),
                progress=_tell,
                ready=lambda: _tell(f"ready: {url}"),
                **vars(decoding),
            )
        _log()
        _tell(f"listening at {url}; compiling")
        listen.listener(asgi, asgi.state.server.drain).run(sockets=[listener])


def _open(
    name: str,
    place: tuple[Path, Any, Any],
    weights: Weights,
    users: str | None,
    slots: int,
    policy: str | None,
) -> Any:
    from jaxgen.text.session import open_session

    home, step, adapter = place
    _tell(f"loading {name} from {home}")
    about = {"step": step, "weights": weights, "adapter": adapter, "policy": policy}
    about["capacity"] = max(2 * slots + 1, 64)
    with exits.in_folder(home), flags.named():
        return open_session(home, **about, users=users)


def _modules() -> tuple[Any, Any]:
    try:
        from jaxgen.serve import listen
        from jaxgen.serve.asgi import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("jaxgen"):
            raise
        raise MissingPackageError(f"{error.name} is missing: pip install 'jaxgen[serve]'") from None
    return app, listen


def _keys_of(about: Listening) -> list[str]:
    """Return the keys of a file, or of the environment; ConfigError where there must be one."""
    if about.api_key_file is None:
        keys = [os.environ.get(KEY, "").strip()]
    else:
        keys = inputs.read_text(about.api_key_file, "--api-key-file").splitlines()
    keys = [line.strip() for line in keys if line.strip()]
    if not keys and about.api_key_file is not None:
        raise ConfigError(f"--api-key-file {about.api_key_file} holds no key; write one a line")
    if not keys and not about.insecure and not _is_local(about.host):
        raise ConfigError(
            f"--host {about.host} lets others ask without a key; set {KEY} or give --api-key-file "
            f"(or --insecure, if that is meant)"
        )
    return keys


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _names(given: list[str], words: list[str]) -> list[str]:
    """Return what each model is called: as its folder or its id, where nobody says."""
    if len(given) > len(words):
        raise ConfigError(f"--name is given {len(given)} times for {len(words)} models")
    bare = [Path(word).resolve().name if Path(word).exists() else word for word in words]
    names = [*given, *(one.removesuffix(".gguf") for one in bare[len(given) :])]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(f"two models are called {twice!r}; tell them apart with --name")
    return names


def _bound(about: Listening) -> socket.socket:
    """Return a socket that is bound, before anything is loaded; BusyError if it can't be."""
    if about.port > 65535:
        raise ConfigError(f"--port {about.port} must be at most 65535")
    made = socket.socket(socket.AF_INET6 if ":" in about.host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((about.host, about.port))
    except OSError as error:
        made.close()
        where, said = f"{about.host}:{about.port}", error.strerror or str(error)
        raise BusyError(f"{where} can't be listened on: {said}; give another --port") from None
    return made


def _url(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _log() -> None:
    """Write the access log, a line of JSON a request, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("jaxgen.serve")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)

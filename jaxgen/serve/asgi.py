"""The ASGI app: its routes, and what they do with mistakes."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxgen.errors import ConfigError
from jaxgen.knowledge.index import Index
from jaxgen.serve import fields, guard
from jaxgen.serve.engine import Engine
from jaxgen.serve.generating import KINDS, generate
from jaxgen.serve.guard import ClientGone, Guard
from jaxgen.serve.metrics import Metrics
from jaxgen.serve.problems import Problem, problem_of
from jaxgen.serve.routes import GETS, POSTS
from jaxgen.serve.served import Served
from jaxgen.serve.server import Server
from jaxgen.serve.strict_json import read_object
from jaxgen.text.session import Session

_LOG = logging.getLogger("jaxgen.serve")


def app(
    models: Any,
    *,
    keys: Sequence[str] = (),
    seconds: float | None = None,
    lenient: bool = False,
    warm: bool = True,
    index: Index | None = None,
    progress: Callable[[str], None] | None = None,
    ready: Callable[[], None] | None = None,
    **engine: Any,
) -> Starlette:
    """Return an ASGI app that answers as OpenAI's API does.

    Args:
      models: a `Session`, an `Engine`, or a mapping of names to such.
      keys: of which a request must bring one, as `Authorization: Bearer KEY`; none: all may ask.
      seconds: after which an answer ends where it is.
      lenient: leave out fields that are unknown or not supported instead of refusing them.
      warm: compile at start; until then requests get 503.
      index: of documents, whose passages come before the last message of a chat; its answer names
        them in `sources`.
      progress: is told what is being compiled; ready: is called once that is done.
      engine: arguments of `Engine` for sessions: slots, queue, context, ...

    Raises:
      ConfigError: for no model, one that reads no text, or an empty key.
    """
    named = dict(models) if isinstance(models, Mapping) else {_name(models): models}
    if not named or not all(keys):
        raise ConfigError(f"models={list(named)} and keys must be given, none empty")
    for name, one in named.items():
        _check_reads_text(name, _session(one))
    engines = _engines(named, **engine)
    served = {name: Served(name, one, index=index) for name, one in engines.items()}
    posts = {**dict.fromkeys(KINDS, generate), **POSTS}
    metrics = Metrics({name: one.engine.stats for name, one in served.items()}, {*posts, *GETS})
    server = Server(served, metrics, seconds, lenient, progress, ready)
    if not warm:
        server.is_ready.set()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if warm:
            threading.Thread(target=server.warm_up, name="jaxgen-warm-up", daemon=True).start()
        yield
        await asyncio.to_thread(server.drain, 30.0)
        server.close()

    routes = [
        Route(path, _Endpoint(work, method), methods=[method])
        for method, works in (("POST", posts), ("GET", GETS))
        for path, work in works.items()
    ]
    made = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _status})
    made.state.server = server
    made.add_middleware(Guard, keys=tuple(keys), metrics=metrics)
    return made


def _session(model: Any) -> Session:
    return model if isinstance(model, Session) else model.session


def _name(model: Any) -> str:
    home = _session(model).model.home
    return "model" if home is None else Path(home).resolve().name


def _check_reads_text(name: str, session: Session) -> None:
    stem = session.config.stem
    if stem is not None:
        what = {"log_mel": "sound", "patches": "images"}[stem.kind]
        raise ConfigError(
            f"the model {name} reads {what}, and requests bring text; use `{stem.verb}`"
        )


def _engines(models: Mapping[str, Any], context: int | None = None, **how: Any) -> dict[str, Any]:
    """Return an engine of each model; context bounds those that reach further, if any does."""
    sessions = {name: one for name, one in models.items() if isinstance(one, Session)}
    longest = {name: one.config.longest for name, one in sessions.items()}
    if context is not None and context <= max(longest.values(), default=0):
        contexts = {name: min(context, one) for name, one in longest.items()}
    else:
        contexts = dict.fromkeys(sessions, context)
    engines = {n: Engine(one, context=contexts[n], **how) for n, one in sessions.items()}
    return {name: engines.get(name, one) for name, one in models.items()}


class _Endpoint:
    """A route's ASGI app: a function of (server, request, body), or of the first two for GET."""

    def __init__(self, work: Callable[..., Any], method: str) -> None:
        self.work, self.has_body = work, method == "POST"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await self._answer(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        server, path, body = request.app.state.server, request.url.path, {}
        try:
            if not self.has_body:
                return await self.work(server, request)
            server.check_open()
            body = read_object(await guard.read_body(request.scope, request.receive))
            return await self.work(server, request, body)
        except ClientGone:
            return Response(status_code=guard.GONE)
        except Exception as error:
            named = fields.named(KINDS[path][2], body) if path in KINDS else {}
            # What shapes a text has come of one of these.
            by = [name for name in ("tools", "response_format", "text") if body.get(name)]
            named |= {"regex": by[0]} if by else {}
            return _refusal(request, error, named, body)


def _refusal(
    request: Request, error: Exception, named: Mapping[str, str], body: Mapping[str, Any]
) -> Response:
    problem = problem_of(error, named, body)
    if problem.status >= 500 and not isinstance(error, Problem):
        # The frames, not the message: that may hold what somebody wrote.
        where = "".join(traceback.format_tb(error.__traceback__))
        about = request.scope["state"]["about"]["id"]
        _LOG.error("request %s failed: %s\n%s", about, type(error).__name__, where)
    close = {"connection": "close"} if problem.status in (408, 413) else {}
    return JSONResponse(problem.body, problem.status, {**problem.headers, **close})


def _status(request: Request, error: Any) -> Response:
    known = {404: "there is no such route", 405: "this route takes another method"}
    problem = Problem(known.get(error.status_code, str(error.detail)), error.status_code)
    return JSONResponse(problem.body, error.status_code, headers=error.headers)

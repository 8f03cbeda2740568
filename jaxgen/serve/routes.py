"""What is asked of a model beside texts, and of the server itself."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from jaxgen.serve import fields, guard, jobs, requests
from jaxgen.serve.problems import Problem
from jaxgen.serve.served import Served
from jaxgen.serve.server import Server
from jaxgen.tokens.protocol import check_ids

PAGE = Path(__file__).with_name("page.html")


async def _embeddings(server: Server, request: Request, body: dict[str, Any]) -> Response:
    given = fields.read(body, fields.EMBEDDING, lenient=server.lenient)
    served, texts = _base(server, given), _texts(given["input"])
    how = {key: given[key] for key in ("prompt_name", "overflow") if key in given}
    vectors, count = await guard.while_there(
        request.receive,
        jobs.run(
            served,
            lambda session: (
                session.embed(texts, **how),
                sum(len(session.model.ids(text)) for text in texts),
            ),
        ),
    )
    size = given.get("dimensions")
    if size is not None and size != vectors.shape[1]:
        raise Problem(f"dimensions={size}, but vectors have {vectors.shape[1]}", param="dimensions")
    coded = given.get("encoding_format") == "base64"
    rows = [
        {
            "object": "embedding",
            "index": number,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
            if coded
            else row.tolist(),
        }
        for number, row in enumerate(vectors)
    ]
    cost = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": rows, "model": served.name, "usage": cost})


def _base(server: Server, given: dict[str, Any]) -> Served:
    """Return the model that a request names; Problem where it wants a user's adapter, too."""
    served = server.model(given["model"])
    if served.user(given) is not None:
        raise Problem("adapters of users change texts alone; leave user out", param="user")
    return served


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value)
    if not texts or len(texts) > fields.MOST_INPUTS:
        raise Problem(f"input must hold 1 to {fields.MOST_INPUTS} texts", param="input")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise Problem(f"input[{number}] is no text; token ids are not read here", param="input")
        if not text:
            raise Problem(f"input[{number}] is empty", param="input")
    return texts


async def _score(server: Server, request: Request, body: dict[str, Any]) -> Response:
    given = fields.read(body, fields.SCORE, lenient=server.lenient)
    served, texts = _base(server, given), _texts(given["input"])
    how = {"overflow": given["overflow"]} if "overflow" in given else {}
    work = jobs.run(served, lambda session: session.score(texts, **how))
    rows = await guard.while_there(request.receive, work)
    data = [
        {"object": "score", "index": number, "logprob": total, "tokens": count}
        for number, (total, count) in enumerate(rows)
    ]
    return JSONResponse({"object": "list", "data": data, "model": served.name})


async def _tokenize(server: Server, request: Request, body: dict[str, Any]) -> Response:
    given = fields.read(body, fields.TOKENIZE, lenient=server.lenient)
    served = server.model(given.get("model"))
    if ("prompt" in given) == ("messages" in given):
        raise Problem("send prompt or messages", param="prompt")
    ids = await asyncio.to_thread(requests.token_ids, served, given, server.lenient)
    about = {"tokens": ids, "count": len(ids), "max_model_len": served.engine.context}
    return JSONResponse(about | {"token_strs": [served.spell(token) for token in ids]})


async def _detokenize(server: Server, request: Request, body: dict[str, Any]) -> Response:
    given = fields.read(body, fields.DETOKENIZE, lenient=server.lenient)
    served = server.model(given.get("model"))
    ids, tokenizer = list(given["tokens"]), served.session.tokenizer
    if any(isinstance(token, bool) for token in ids):
        raise Problem("tokens must be ids", param="tokens")
    check_ids(ids, tokenizer.vocab_size)
    return JSONResponse({"prompt": tokenizer.decode(ids)})


async def _models(server: Server, request: Request) -> Response:
    data = [_about(one) for one in server.models.values()]
    return JSONResponse({"object": "list", "data": data})


async def _one_model(server: Server, request: Request) -> Response:
    return JSONResponse(_about(server.model(request.path_params["name"])))


def _about(one: Served) -> dict[str, Any]:
    about = {"id": one.name, "object": "model", "created": one.created, "owned_by": "jaxgen"}
    more = {"max_model_len": one.engine.context, "chat": one.template is not None}
    return about | more | {"generates": one.generates}


async def _health(server: Server, request: Request) -> Response:
    dead = [name for name, one in server.models.items() if not getattr(one.engine, "alive", True)]
    status = 503 if dead or server.failure else 200
    about = {"status": "failed" if status == 503 else "ok", "dead": dead, "error": server.failure}
    return JSONResponse(about if status == 503 else {"status": "ok"}, status)


async def _ready(server: Server, request: Request) -> Response:
    server.check_open()
    return JSONResponse({"status": "ready"})


async def _metrics(server: Server, request: Request) -> Response:
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


async def _page(server: Server, request: Request) -> Response:
    rules = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": rules}
    return HTMLResponse(await asyncio.to_thread(PAGE.read_text, "utf-8"), headers=headers)


POSTS = {
    "/v1/embeddings": _embeddings,
    "/score": _score,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
}
GETS = {
    "/v1/models": _models,
    "/v1/models/{name:path}": _one_model,
    "/health": _health,
    "/ready": _ready,
    "/metrics": _metrics,
    "/": _page,
}

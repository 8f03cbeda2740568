"""Requests for texts on their way to an answer, at once or as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxgen.serve import fields, guard, jobs, requests
from jaxgen.serve.answers import ChatAnswer, TextAnswer, event, usage
from jaxgen.serve.guard import ClientGone
from jaxgen.serve.jobs import Job
from jaxgen.serve.problems import Problem, problem_of
from jaxgen.serve.requests import Ask
from jaxgen.serve.response_answers import ResponseAnswer
from jaxgen.serve.server import Server

KINDS: dict[str, tuple[Callable[..., Ask], Any, fields.Fields]] = {
    "/v1/chat/completions": (requests.chat, ChatAnswer, fields.CHAT),
    "/v1/completions": (requests.completion, TextAnswer, fields.COMPLETION),
    "/v1/responses": (requests.response, ResponseAnswer, fields.RESPONSE),
}


async def generate(server: Server, request: Request, body: dict[str, Any]) -> Response:
    """Answer a request for texts, at once or as it comes."""
    make, kind, _ = KINDS[request.url.path]
    served = server.model(_text(body, "model"))
    ask = await asyncio.to_thread(make, served, body, server.lenient)
    about = request.scope["state"]["about"]
    about |= {"model": served.name, "stream": ask.stream}
    answer, job = kind(ask, about["id"]), Job(ask, server.seconds)
    if isinstance(answer, TextAnswer):
        await _echo(answer)
    work = _Work(server, job, answer, about)
    try:
        await guard.while_there(request.receive, job.begin())
        if ask.stream:
            return _Events(work)
        return JSONResponse(await guard.while_there(request.receive, work.whole()))
    except BaseException:
        job.cancel()
        raise


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise Problem(f"{name} must be a string", param=name)
    return value


async def _echo(answer: TextAnswer) -> None:
    """Score the prompts that come back with log-probabilities."""
    ask = answer.ask
    if ask.echo is None or ask.detail is None:
        return
    session, top = ask.served.session, ask.detail
    answer.ids = [session.ids(prompt.text) for prompt in ask.prompts]
    room, user = ask.served.engine.context, ask.prompts[0].user
    if any(len(ids) > room for ids in answer.ids):
        raise Problem(f"prompt has more than context={room} tokens", param="prompt")
    answer.scores = await jobs.run(
        ask.served, lambda session: jobs.prompt_scores(session, answer.ids, top, user)
    )


class _Work:
    """A job on its way to an answer; about: what the log says of it."""

    def __init__(self, server: Server, job: Job, answer: Any, about: dict[str, Any]) -> None:
        self.server, self.job, self.answer, self.about = server, job, answer, about

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the objects of a stream."""
        async for choice, is_new, (parts, rows) in self.job.pieces():
            if is_new:
                for chunk in self.answer.first(choice):
                    yield chunk
            for chunk in self.answer.more(choice, parts, rows):
                yield chunk
            if choice.completion is not None:
                for chunk in self.answer.last(choice):
                    yield chunk
        for chunk in self.answer.end(self.job.ranked(), self._cost()):
            yield chunk

    async def whole(self) -> dict[str, Any]:
        """Return the answer at once."""
        async for _ in self.job.pieces():
            pass
        cost = self._cost()  # of all texts, before the best are chosen
        return self.answer.whole(self.job.ranked(), cost)

    def _cost(self) -> dict[str, Any]:
        """Return the tokens that it has cost, and count them."""
        self.server.metrics.first.observe(self.job.first_seconds)
        prompt, cached = (sum(row[i] for row in self.job.prompt.values()) for i in (0, 1))
        choices = self.job.choices.values()
        completion = sum(choice.num_tokens for choice in choices)
        ends = [one.finish_reason for one in choices]
        self.about |= {"prompt_tokens": prompt, "completion_tokens": completion, "finish": ends[:8]}
        for kind, number in (("prompt", prompt), ("text", completion), ("cached", cached)):
            self.server.metrics.tokens.labels(self.about["model"], kind).inc(number)
        return usage(prompt, completion, cached)


class _Events(Response):
    """The stream of an answer: ends its job whenever it ends, however that is."""

    media_type = "text/event-stream"

    def __init__(self, work: _Work) -> None:
        self.work, self.background = work, None
        self.status_code = 200
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send events while the client is there."""
        try:
            await guard.while_there(receive, self._send(send))
        except ClientGone:
            scope["state"]["about"]["status"] = guard.GONE
        finally:
            self.work.job.cancel()

    async def _send(self, send: Any) -> None:
        raw = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

        async def put(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        is_response = isinstance(self.work.answer, ResponseAnswer)
        try:
            async for chunk in self.work.chunks():
                await put(event(chunk, chunk["type"] if is_response else None))
            await put(b"" if is_response else event("[DONE]"), False)
        except Exception as error:
            if isinstance(error, TimeoutError | OSError):  # it does not read
                raise
            problem = problem_of(error, {}, {})
            self.work.about["error"] = type(error).__name__
            await put(event(problem.body, "error" if is_response else None), False)

"""Requests for texts on their way to an answer, at once or as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxgen.serve import fields, guard, jobs, requests, response_requests
from jaxgen.serve.answers import ChatAnswer, Choice, TextAnswer, event, usage
from jaxgen.serve.guard import ClientGone
from jaxgen.serve.jobs import Job
from jaxgen.serve.problems import Problem, problem_of
from jaxgen.serve.requests import Ask
from jaxgen.serve.response_answers import ResponseAnswer
from jaxgen.serve.server import Server
from jaxgen.serve.tickets import Delta, Finished, Started
from jaxgen.text import batch_decoding

KINDS: dict[str, tuple[Callable[..., Ask], Any, fields.Fields]] = {
    "/v1/chat/completions": (requests.chat, ChatAnswer, fields.CHAT),
    "/v1/completions": (requests.completion, TextAnswer, fields.COMPLETION),
    "/v1/responses": (response_requests.response, ResponseAnswer, fields.RESPONSE),
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
        await guard.while_there(request.receive, work.begin())
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
    """A job on its way to an answer."""

    def __init__(self, server: Server, job: Job, answer: Any, about: dict[str, Any]) -> None:
        self.server, self.job, self.answer, self.about = server, job, answer, about
        self.begun = time.monotonic()
        self.choices: dict[int, Choice] = {}
        self.prompt: dict[int, tuple[int, int]] = {}  # tokens of prompts, those that were cached

    async def begin(self) -> None:
        """Submit, and wait for the first event: what is refused is so before anything is sent."""
        await self.job.start()
        self.events = self.job.events()
        self.held = [await anext(self.events)]

    async def parts(self) -> AsyncIterator[tuple[Choice, bool, Any]]:
        """Yield (choice, whether it is new, (parts, rows)) of all events."""
        ask = self.job.ask
        each = ask.prompts[0].settings.draws_each if ask.prompts[0].settings.best_of else ask.texts
        first = True
        while True:
            try:
                number, one = self.held.pop() if self.held else await anext(self.events)
            except StopAsyncIteration:
                return
            place = number * each + one.index
            is_new = place not in self.choices
            choice = self.choices.setdefault(place, Choice(ask, place))
            made: Any = ([], [])
            if isinstance(one, Started):
                self.prompt[number] = (one.prompt_tokens, one.cached_tokens)
            elif isinstance(one, Delta):
                made = choice.take(one.text, one.tokens, one.logprobs, one.top)
            elif isinstance(one, Finished):
                made = choice.finish(one.completion)
                self.prompt.setdefault(number, (one.completion.prompt_tokens, 0))
            if first and choice.num_tokens:
                self.server.metrics.first.observe(time.monotonic() - self.begun)
                first = False
            yield choice, is_new, made

    async def whole(self) -> dict[str, Any]:
        """Return the answer at once."""
        async for _ in self.parts():
            pass
        cost = self.cost()
        return self.answer.whole(self._ranked(), cost)

    def _ranked(self) -> list[Choice]:
        """Return the choices in order, the best of each prompt if that was asked for."""
        ask, rows = self.job.ask, [self.choices[place] for place in sorted(self.choices)]
        settings = ask.prompts[0].settings
        if not settings.best_of:
            return rows
        kept: list[Choice] = []
        for number in range(len(ask.prompts)):
            own = rows[number * settings.best_of : (number + 1) * settings.best_of]
            done = [one.completion for one in own if one.completion is not None]
            best = batch_decoding.rank(done, settings)
            kept += [
                next(one for one in own if one.completion and one.completion.tokens == row.tokens)
                for row in best
            ]
        for index, choice in enumerate(kept):
            choice.index = index
        return kept

    def cost(self) -> dict[str, Any]:
        """Return the tokens that it has cost, and count them."""
        prompt, cached = (sum(row[i] for row in self.prompt.values()) for i in (0, 1))
        made = sum(choice.num_tokens for choice in self.choices.values())
        ends = [one.finish_reason for one in self.choices.values()]
        self.about |= {"prompt_tokens": prompt, "completion_tokens": made, "finish": ends[:8]}
        for kind, number in (("prompt", prompt), ("text", made), ("cached", cached)):
            self.server.metrics.tokens.labels(self.about["model"], kind).inc(number)
        return usage(prompt, made, cached)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the objects of a stream."""
        async for choice, is_new, (parts, rows) in self.parts():
            if is_new:
                for chunk in self.answer.first(choice):
                    yield chunk
            for chunk in self.answer.more(choice, parts, rows):
                yield chunk
            if choice.completion is not None:
                for chunk in self.answer.last(choice):
                    yield chunk
        cost = self.cost()
        for chunk in self.answer.end(self._ranked(), cost):
            yield chunk


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

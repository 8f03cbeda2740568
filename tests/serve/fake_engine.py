"""An engine with one request at a time, for tests of what is around it."""

import threading
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

from jaxgen.text.batch_decoding import Alternative, Completion, RequestBatch
from jaxgen.text.prompts import requests_of
from jaxgen.text.text_stream import TextStream


class QueueFull(RuntimeError):  # noqa: N818
    pass


class Draining(RuntimeError):  # noqa: N818
    pass


class Started(NamedTuple):
    index: int
    prompt_tokens: int
    cached_tokens: int


class Delta(NamedTuple):
    index: int
    text: str
    tokens: list
    logprobs: Any
    top: Any


class Finished(NamedTuple):
    index: int
    completion: Any


class Failed(NamedTuple):
    index: int
    error: Exception


class FakeEngine:
    """pause: seconds between pieces; `gate`: an event that all work waits for.

    canned: texts come from a table, not from the model, so that nothing is compiled; script: what
    is said instead of them.
    """

    def __init__(self, session, *, queue=64, pause=0.0, canned=True):
        self.session, self.size, self.pause, self.canned = session, queue, pause, canned
        self.alive, self.draining, self.prompts = True, False, []
        self.gate = threading.Event()
        self.gate.set()
        self.lock, self.waiting, self.cancelled = threading.Lock(), 0, []
        self.inside = threading.Lock()
        self.broken = self.script = None

    def warm_up(self, progress=None):
        if progress:
            progress("nothing")

    def _enter(self):
        with self.lock:
            if self.draining:
                raise Draining
            if self.waiting >= self.size:
                raise QueueFull
            self.waiting += 1

    def _start(self, work):
        def run():
            try:
                self.gate.wait()
                with self.inside:
                    work()
            finally:
                with self.lock:
                    self.waiting -= 1

        threading.Thread(target=run, daemon=True).start()

    def submit(self, prompt, listener, *, deadline=None, detail=None):
        requests = tuple(requests_of(self.session.model, [prompt])[0])
        RequestBatch(self.session.model, None, requests, len(requests), None, time.monotonic).inputs
        self._enter()
        self.prompts.append(prompt)
        ticket = threading.Event()
        self._start(lambda: self._answer(prompt, listener, ticket, detail))
        return ticket

    def _answer(self, prompt, listener, ticket, detail):
        if ticket.is_set():
            return
        try:
            if self.broken:
                raise self.broken
            settings = _unranked(prompt.settings, detail)
            if self.canned:
                rows = self._can(prompt, settings, detail)
            else:
                run = self.session.run
                (rows,) = run([prompt._replace(settings=settings)], detail=detail is not None)
        except Exception as error:
            listener(Failed(0, error))
            return
        for index, one in enumerate(rows):
            listener(Started(index, one.prompt_tokens, 0))
            ends = (*self.session.model.stop, *prompt.settings.stop_ids)
            text, after = "", prompt.text if isinstance(prompt.text, str) else ""
            stream = TextStream(
                self.session.tokenizer,
                self.session.ids(after) if after else (),
                prompt.settings.stop,
                len(one.tokens),
                ends,
            )
            for begin in range(0, len(one.tokens), 3):
                if ticket.is_set():
                    return
                time.sleep(self.pause)
                part = slice(begin, begin + 3)
                piece = stream.push(one.tokens[part])
                text += piece
                listener(Delta(index, piece, one.tokens[part], one.logprobs[part], one.top[part]))
            assert one.text.startswith(text)
            listener(Finished(index, one))

    def _can(self, prompt, settings, detail):
        """Return texts of the letters from a on, each of its own length."""
        (asked, *_) = requests_of(self.session.model, [prompt])[0:1]
        made = []
        for number in range(settings.n_best or settings.draws_each):
            tokens = [97 + (number + i) % 26 for i in range(asked[0].limit)]
            if self.script is not None:
                tokens = [*self.script.encode(), 257]
            stream = TextStream(self.session.tokenizer, (), settings.stop, len(tokens))
            text = stream.push(tokens)
            tokens = tokens[: stream.num_generated]
            top = [[Alternative(one, -0.5), Alternative(98, -1.5)] for one in tokens]
            about = {} if detail is None else {"logprobs": [-0.5] * len(tokens), "top": top}
            made.append(Completion(text, stream.reason, tokens, len(asked[0].ids), **about))
        return made

    def run(self, function):
        self._enter()
        future = Future()

        def work():
            try:
                future.set_result(function(self.session))
            except Exception as error:
                future.set_exception(error)

        self._start(work)
        return future

    def cancel(self, ticket):
        ticket.set()
        self.cancelled.append(ticket)

    def drain(self, seconds):
        self.draining = True
        end = time.monotonic() + seconds
        while self.waiting and time.monotonic() < end:
            time.sleep(0.01)
        return not self.waiting

    def stats(self):
        return {"waiting": self.waiting, "cancelled": len(self.cancelled)}

    def close(self):
        self.alive = False


def _unranked(settings, detail):
    """What is drawn, before it is ranked, with the alternatives that are asked for."""
    import dataclasses

    changes = {"top_logprobs": detail} if detail else {}
    if settings.best_of:
        changes |= {"samples": settings.best_of, "best_of": None}
    return dataclasses.replace(settings, **changes)

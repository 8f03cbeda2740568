"""An engine with one request at a time, for tests of what is around it."""

import threading
import time
from concurrent.futures import Future

from jaxgen.serve.tickets import Delta, Draining, Failed, Finished, QueueFull, Started, Stats
from jaxgen.text.batch_decoding import Alternative, Completion, RequestBatch
from jaxgen.text.prompts import requests_of
from jaxgen.text.text_stream import TextStream
from jaxgen.tokens.plain import Bytes


class MarkedBytes(Bytes):
    """Bytes that a chat template can be laid in."""

    def encode_marked(self, text, *, plain=()):
        return self.encode(text)

    def marks(self):
        return []

    def vocabulary(self):
        return {}


class FakeEngine:
    """pause: seconds between pieces; `gate`: an event that all work waits for.

    Texts are letters, not the model's, so that nothing is compiled; script: what is said instead.
    """

    def __init__(self, session, *, queue=64, pause=0.0):
        self.session, self.size, self.pause = session, queue, pause
        self.context = session.context
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
            rows = self._texts(prompt, detail)
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

    def _texts(self, prompt, detail):
        """Return texts of the letters from a on, each of its own length."""
        (asked,), settings, made = (
            requests_of(self.session.model, [prompt]),
            prompt.settings,
            [],
        )
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
        none = Stats(*[0] * len(Stats._fields))
        return none._replace(queued=self.waiting, cancelled=len(self.cancelled))

    def close(self):
        self.alive = False

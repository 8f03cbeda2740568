"""Requests in the engine as seen from the event loop: events to wait for, and a way to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jaxgen.errors import ConfigError
from jaxgen.serve.requests import Ask
from jaxgen.serve.tickets import Event, Failed, Finished


@dataclass
class Job:
    """The texts of one request. Its listener is called in the engine's thread and never waits."""

    ask: Ask
    seconds: float | None = None
    tickets: list[Any] = field(default_factory=list)
    left: int = 0

    async def start(self) -> None:
        """Submit all prompts, in a thread: structures are compiled there."""
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        self.left = sum(map(_texts, (prompt.settings for prompt in self.ask.prompts)))
        self.given_up = False
        await asyncio.to_thread(self._submit)

    def _submit(self) -> None:
        settings = self.ask.prompts[0].settings
        detail = self.ask.detail
        if settings.best_of and detail is None:
            detail = 0  # texts are ranked by their log-probabilities
        deadline = None if self.seconds is None else time.monotonic() + self.seconds
        try:
            for number, prompt in enumerate(self.ask.prompts):
                about = {"deadline": deadline, "detail": detail}
                submit = self.ask.served.engine.submit
                self.tickets.append(submit(prompt, self._listener(number), **about))
                if self.given_up:
                    self.cancel()
                    return
        except BaseException:
            self.cancel()
            raise

    def _listener(self, number: int) -> Any:
        def heard(event: Any) -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody listens
                self.loop.call_soon_threadsafe(self.queue.put_nowait, (number, event))

        return heard

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (number of the prompt, event) until every text has ended; raise its failure."""
        while self.left:
            number, event = await self.queue.get()
            if isinstance(event, Failed):
                raise event.error
            self.left -= isinstance(event, Finished)
            yield number, event

    def cancel(self) -> None:
        """Give up what has not ended; nothing where all has."""
        self.given_up = True
        for ticket in self.tickets:
            self.ask.served.engine.cancel(ticket)


def _texts(settings: Any) -> int:
    """Return how many texts a prompt comes to, before they are ranked."""
    return settings.n_best or settings.draws_each


async def run(served: Any, function: Any) -> Any:
    """Return what a function of the session gives in the engine's thread."""
    return await asyncio.wrap_future(served.engine.run(function))


def prompt_scores(
    session: Any, prompts: list[list[int]], top: int, user: str | None = None
) -> list[tuple[list[float], list[Any]]]:
    """Return (log-probabilities, alternatives) of prompts' tokens but the first."""
    import numpy as np

    from jaxgen.text import programs
    from jaxgen.text.batch_decoding import Alternative
    from jaxgen.text.batches import batch_size, pad
    from jaxgen.text.programs import StepKind

    model = session.model
    if model.config.topology != "decoder":
        raise ConfigError("echo=True with logprobs needs a decoder")
    kind = StepKind(min(model.tokenizer.vocab_size, model.config.V), (), False)
    scored = []
    for ids in prompts:
        tokens, _ = pad([ids], size=batch_size(1))
        tokens = tokens[:, : max(model.config.longest, len(ids))]
        params = session.params if user is None else session.users.params(session.params, [user])
        found = programs.score_tokens(params, model.config, kind, tokens, None, None, top=top)
        logprobs, best_ids, best = (np.asarray(x)[0, : len(ids) - 1].tolist() for x in found)
        rows = [
            [Alternative(*pair) for pair in zip(a, b, strict=True)]
            for a, b in zip(best_ids, best, strict=True)
        ]
        scored.append((logprobs, rows))
    return scored

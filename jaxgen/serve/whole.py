"""What runs through the session between chunks: prompts that can't share slots, and functions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.serve.tickets import Counts, Delta, Finished, Started, Ticket
from jaxgen.text.batch_decoding import begin
from jaxgen.text.batches import Request
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.text.session import Session


@dataclass(eq=False)
class Whole:
    """A prompt whose texts come in one piece."""

    ticket: Ticket
    prompt: Prompt
    requests: list[Request]
    detail: int | None

    @property
    def settings(self) -> Generation:
        """Return its settings, so that every draw and as many alternatives are given."""
        changes: dict[str, Any] = {"top_logprobs": self.detail} if self.detail else {}
        settings = self.prompt.settings
        if settings.best_of:
            changes |= {"samples": settings.best_of, "best_of": None}
        return replace(settings, **changes)


@dataclass(eq=False)
class Work:
    """A function of the session, and its future result."""

    function: Callable[[Session], Any]
    future: Future = field(default_factory=Future)

    def do(self, session: Session) -> None:
        """Call the function, unless nobody waits for it any more."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.function(session))
        except BaseException as error:  # the caller's, whatever it is
            self.future.set_exception(error)

    def fail(self, error: Exception) -> None:
        """Give the future an error, if it has no result yet."""
        if not self.future.done():
            self.future.set_exception(error)


def complete(session: Session, members: list[Whole], counts: Counts) -> None:
    """Decode prompts of the same `detail` together, and tell their listeners."""
    now = session.clock()
    late = [one for one in members if one.ticket.is_late(now)]
    for one in late:
        counts["cancelled"] += one.ticket.cancelled
        for index, request in enumerate(one.requests[: one.ticket.texts]):
            state = begin(session.model, request)
            state.end(Reason.TIME)
            counts["finished"] += not one.ticket.cancelled
            one.ticket.tell(Finished(index, state.completion()))
    members = [one for one in members if one not in late]
    if not members:
        return
    prompts = [one.prompt._replace(settings=one.settings) for one in members]
    try:
        rows = session.run(prompts, detail=members[0].detail is not None)
    except Exception as error:
        if len(members) == 1:
            counts["failed"] += members[0].ticket.fail(error)
            return
        for one in members:  # one that fails leaves the others alone
            complete(session, [one], counts)
        return
    for one, row in zip(members, rows, strict=True):
        for index, answer in enumerate(row):
            counts["finished"] += 1
            counts["prompt_tokens"] += answer.prompt_tokens
            counts["generated_tokens"] += len(answer.tokens)
            one.ticket.tell(Started(index, answer.prompt_tokens, 0))
            about = (answer.text, answer.tokens, answer.logprobs, answer.top)
            one.ticket.tell(Delta(index, *about))
            one.ticket.tell(Finished(index, answer))
        if len(row) < one.ticket.texts:
            error = ConfigError(f"the search has found {len(row)} texts; lower n_best")
            counts["failed"] += one.ticket.fail(error)

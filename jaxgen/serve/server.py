"""The models of an app, and whether it takes requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxgen.serve.metrics import Metrics
from jaxgen.serve.problems import Problem
from jaxgen.serve.served import Served

_LOG = logging.getLogger("jaxgen.serve")


@dataclass
class Server:
    """The models of an app, and whether it is ready for requests.

    seconds: after which a text ends where it is; lenient: fields that are unknown or not supported
    are left out instead of refused.
    """

    models: dict[str, Served]
    metrics: Metrics
    seconds: float | None = None
    lenient: bool = False
    progress: Callable[[str], None] | None = None
    ready: Callable[[], None] | None = None
    is_ready: threading.Event = field(default_factory=threading.Event)
    draining: bool = False
    failure: str | None = None

    def model(self, name: str | None) -> Served:
        """Return a model by its name, or by MODEL/USER; Problem 404 if there is none of it."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        base, _, user = (name or "").rpartition("/")
        if name not in self.models and base in self.models and self.models[base].has_user(user):
            return self.models[base]
        if name not in self.models:
            known = ", ".join(self.models)
            raise Problem(
                f"there is no model {name!r:.80}; there are {known}",
                404,
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    def check_open(self) -> None:
        """Raise Problem 503 unless requests are taken."""
        if self.draining:
            raise Problem("the server is shutting down", 503, code="draining")
        if not self.is_ready.is_set():
            raise Problem("the models are being compiled; /ready says when", 503, code="warming_up")

    def warm_up(self) -> None:
        """Compile all that answers need."""
        try:
            for one in self.models.values():
                one.engine.warm_up(self.progress)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            _LOG.error("warm-up failed: %s", self.failure)
            return
        self.is_ready.set()
        if self.ready is not None:
            self.ready()

    def drain(self, seconds: float) -> bool:
        """Refuse new requests and finish those that run; return whether all have ended."""
        self.draining, end = True, time.monotonic() + seconds
        done = True
        for one in self.models.values():
            done &= one.engine.drain(max(end - time.monotonic(), 0.0))
        return done

    def close(self) -> None:
        """End the engines."""
        for one in self.models.values():
            one.engine.close()

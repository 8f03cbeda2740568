"""A model that is served: its engine, its name, and what its chat template makes of messages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.knowledge.answer import grounded
from jaxgen.knowledge.index import Index
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.serve.problems import Problem
from jaxgen.text import tool_calls, tool_formats
from jaxgen.text.loaded_model import template_of
from jaxgen.text.session import Session
from jaxgen.text.tool_formats import Tool, ToolFormat


@dataclass
class Served:
    """An engine under a name."""

    name: str
    engine: Any
    created: int = field(default_factory=lambda: int(time.time()))
    index: Index | None = None

    @property
    def session(self) -> Session:
        """Return the model."""
        return self.engine.session

    @cached_property
    def template(self) -> ChatTemplate | None:
        """Return its chat template, None for a model that was not made for chat."""
        try:
            return template_of(self.session.model)
        except (CheckpointError, ConfigError):
            return None

    @cached_property
    def spelling(self) -> ToolFormat:
        """Return how it writes calls of tools."""
        return tool_formats.format_of(self.chat_template())

    def has_user(self, name: str) -> bool:
        """Return whether a user of this name is served; who is gone leaves the memory, too."""
        users = self.session.users
        if users is None:
            return False
        try:
            users.read(name)
        except ConfigError:
            if name in users.slots:
                self.engine.run(lambda session: session.users.drop(name))
            return False
        return True

    def user(self, given: Mapping[str, Any]) -> str | None:
        """Return whose adapter and preferences a request asks for, by `user` or by MODEL/USER.

        Problem 400 for one that is not known, or for two; where no users are served, None.
        """
        name, model = given.get("user"), given["model"]
        by_model = None if model == self.name else model.removeprefix(f"{self.name}/")
        if self.session.users is None or (name or by_model) is None:
            return None
        if None not in (name, by_model) and name != by_model:
            raise Problem(f"model={model} is of another user than user={name!r:.80}", param="user")
        user = name or by_model
        if user is None or not self.has_user(user):  # the others' names are nobody's business
            raise Problem(f"there is no user {user!r:.80}", param="user", code="user_not_found")
        return user

    @cached_property
    def generates(self) -> bool:
        """Return whether it gives next tokens."""
        config = self.session.config
        return config.topology != "encoder" and config.head == "lm"

    @cached_property
    def ends(self) -> frozenset[int]:
        """Return the ids that end a text and are no part of it."""
        eos = self.session.tokenizer.special.eos
        return frozenset((*self.session.model.stop, *([] if eos is None else [eos])))

    def chat_template(self) -> ChatTemplate:
        """Return its chat template; Problem 400 if it has none."""
        if self.template is None:
            raise Problem(
                f"the model {self.name} has no chat template; send a prompt to /v1/completions",
                param="messages",
            )
        return self.template

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        values: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Return the ids of a chat up to where the model's turn begins."""
        return tool_calls.chat_ids(self.session, self.chat_template(), messages, tools, values)

    def grounded(
        self, messages: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return a chat with the passages of the index that fit it, and where these stand."""
        if self.index is None:
            return messages, []
        context = self.engine.context
        after, hits = grounded(self.index, self.session, messages, context=context)
        sources = [{"document": hit.document, "start": hit.start, "end": hit.end} for hit in hits]
        return [dict(message) for message in after], sources

    def spell(self, token: int) -> str:
        """Return the text of a token."""
        return self.spell_bytes(token).decode("utf-8", errors="replace")

    def spell_bytes(self, token: int) -> bytes:
        """Return the bytes of a token, which may be part of a character."""
        surface = getattr(self.session.tokenizer, "surface", None)
        if surface is not None and surface.pieces[token]:
            return surface.pieces[token]
        text = self.session.tokenizer.decode([token])
        return (text or self._names.get(token, "")).encode()

    @cached_property
    def _names(self) -> dict[int, str]:
        vocabulary = getattr(self.session.tokenizer, "vocabulary", dict)()
        return {i: piece for piece, i in vocabulary.items()}

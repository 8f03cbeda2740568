"""A chat that goes on: what was said so far, its commands, its file, and what fits the context."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.cli import inputs
from jaxgen.errors import ConfigError, nearest

Message = dict[str, Any]
Encode = Callable[[Sequence[Message]], Sequence[int]]

HELP = {
    "/clear": "forget all that was said, but for the system's message",
    "/save FILE": "write the chat as a line of JSON, as --input and training read it",
    "/load FILE": "go on with the chat of such a file",
    "/help": "show these commands",
}


class Conversation:
    """The messages of a chat; `first` are those that stay, such as the system's.

    Attributes:
        turns: all that was said; those from `start` on are in the context.

    Args:
        first: messages before the first turn.
        encode: messages -> the ids of the chat up to where the model's turn begins.
        room: most ids of a chat, so that an answer still fits the context.
        path: of the file that keeps the chat; one that is there is read.
    """

    def __init__(
        self, first: Sequence[Message], encode: Encode, room: int, path: Path | None = None
    ) -> None:
        self.first, self.encode, self.room, self.path = list(first), encode, room, path
        self.turns: list[Message] = []
        self.start = 0
        if path is not None and path.exists():
            self.load(path)

    @property
    def messages(self) -> list[Message]:
        """What the model reads."""
        return [*self.first, *self.turns[self.start :]]

    def ask(self, line: str) -> tuple[Sequence[int], int]:
        """Return (the ids of the chat with a message more, turns that it had to drop).

        The oldest turns leave the context, whole ones, until the chat fits. Raises ConfigError for
        a message that fits by no means; then the chat stays as it was.
        """
        turns, start, dropped = [*self.turns, {"role": "user", "content": line}], self.start, 0
        while len(ids := self.encode([*self.first, *turns[start:]])) > self.room:
            later = [n for n, turn in enumerate(turns) if n > start and turn["role"] == "user"]
            if not later:
                raise ConfigError(
                    f"the message takes {len(ids)} tokens with all around it, but {self.room} "
                    f"leave room for an answer; shorten it by {len(ids) - self.room}"
                )
            start, dropped = later[0], dropped + 1
        self.turns, self.start = turns, start
        return ids, dropped

    def answered(self, turns: Sequence[Message]) -> None:
        """Add the turns that answer the last message, and keep the chat in its file."""
        self.turns += turns
        if self.path is not None:
            self.save(self.path)

    def withdraw(self) -> None:
        """Forget a message that got no answer."""
        while self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def save(self, path: Path) -> None:
        """Write all that was said, as a line of JSON."""
        record = json.dumps({"messages": [*self.first, *self.turns]}, ensure_ascii=False)
        files.write(path, record + "\n")

    def load(self, path: Path) -> None:
        """Go on with the chat of a file; ConfigError for what is none."""
        rows = list(inputs.objects(str(path), ["messages"], "conversation"))
        messages = rows[0][1]["messages"]
        known = isinstance(messages, list) and all(
            isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages
        )
        if len(rows) > 1 or not known:
            what = f"{len(rows)} chats" if known else "messages that are none"
            raise ConfigError(f"{path} holds {what}; one line with one chat can go on")
        count = next(
            (n for n, one in enumerate(messages) if one["role"] not in ("system", "developer")),
            len(messages),
        )
        if self.first and count and messages[:count] != self.first:
            raise ConfigError(
                f"the chat of {path} has another system's message; leave out --system"
            )
        self.first = messages[:count] or self.first
        self.turns, self.start = messages[count:], 0
        self.withdraw()

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; return what to show. ConfigError if wrong."""
        name, _, rest = line.strip().partition(" ")
        path = Path(rest.strip()).expanduser()
        if name == "/clear" and not rest:
            self.turns, self.start = [], 0
            return "cleared"
        if name == "/save" and rest.strip():
            self.save(path)
            return f"wrote {path}"
        if name == "/load" and rest.strip():
            self.load(path)
            return f"{len(self.turns)} messages of {path}"
        if name == "/help":
            return "\n".join(f"{word:12}{what}" for word, what in HELP.items())
        if name in ("/save", "/load"):
            raise ConfigError(f"{name} needs the name of a file, as in {name} chat.jsonl")
        commands = [word.split()[0] for word in HELP]
        raise ConfigError(f"{name} is no command{nearest(name, commands)}; /help lists them")

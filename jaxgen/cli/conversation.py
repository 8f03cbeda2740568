"""A chat on a terminal: what was said so far, its commands, and what fits the context of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import ConfigError, nearest

Message = dict[str, Any]
Encode = Callable[[Sequence[Message]], Sequence[int]]

HELP = {
    "/clear": "forget all that was said, but for the system's message",
    "/save FILE": "write the chat as a line of JSON, as --input and training read it",
    "/help": "show these commands",
}


class Conversation:
    """The messages of a chat; `first` are those that stay, such as the system's.

    Args:
        first: messages before the first turn.
        encode: messages -> the ids of the chat up to where the model's turn begins.
        room: most ids of a chat, so that an answer still fits the context.
    """

    def __init__(self, first: Sequence[Message], encode: Encode, room: int) -> None:
        self.first, self.encode, self.room = list(first), encode, room
        self.turns: list[Message] = []

    def ask(self, line: str) -> tuple[Sequence[int], int]:
        """Return (the ids of the chat with a message more, turns that it had to drop).

        The oldest turns go, whole ones, until the chat fits. Raises ConfigError for a message that
        fits by no means; then the chat stays as it was.
        """
        turns, dropped = [*self.turns, {"role": "user", "content": line}], 0
        ids = self.encode([*self.first, *turns])
        while len(ids) > self.room and len(turns) > 1:
            later = [n for n, turn in enumerate(turns) if n and turn["role"] == "user"]
            turns, dropped = turns[later[0] :], dropped + 1
            ids = self.encode([*self.first, *turns])
        if len(ids) > self.room:
            raise ConfigError(
                f"the message takes {len(ids)} tokens with all around it, but {self.room} leave "
                f"room for an answer; shorten it by {len(ids) - self.room}"
            )
        self.turns = turns
        return ids, dropped

    def answered(self, text: str) -> None:
        """Add the model's turn."""
        self.turns.append({"role": "assistant", "content": text})

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; return what to show. ConfigError if wrong."""
        name, _, rest = line.strip().partition(" ")
        if name == "/clear" and not rest:
            self.turns = []
            return "cleared"
        if name == "/save" and rest.strip():
            path = Path(rest.strip()).expanduser()
            record = json.dumps({"messages": [*self.first, *self.turns]}, ensure_ascii=False)
            files.write(path, record + "\n")
            return f"wrote {path}"
        if name == "/help":
            return "\n".join(f"{word:12}{what}" for word, what in HELP.items())
        if name == "/save":
            raise ConfigError("/save needs the name of a file, as in /save chat.jsonl")
        commands = [word.split()[0] for word in HELP]
        raise ConfigError(f"{name} is no command{nearest(name, commands)}; /help lists them")

"""A chat on a terminal keeps what fits, says what it drops, and obeys its commands."""

import json

import pytest

from jaxgen.cli.conversation import Conversation
from jaxgen.errors import ConfigError

SYSTEM = {"role": "system", "content": "ss"}


def chat(room, first=(SYSTEM,)):
    """A chat in which each letter is a token."""
    return Conversation(first, lambda rows: [0] * sum(len(row["content"]) for row in rows), room)


def test_the_oldest_turns_are_dropped_whole_until_the_chat_fits():
    talk = chat(20)
    for turn in range(3):
        ids, dropped = talk.ask("qqqq")
        assert (len(ids), dropped) == [(6, 0), (14, 0), (14, 1)][turn]
        talk.answered("aaaa")
    ids, dropped = talk.ask("q" * 18)
    assert (len(ids), dropped) == (20, 2) and len(talk.turns) == 1
    talk.answered("a")
    with pytest.raises(ConfigError, match="shorten it by 1"):
        talk.ask("q" * 19)
    assert [row["content"] for row in talk.turns] == ["q" * 18, "a"]


def test_commands_clear_save_and_are_listed(tmp_path):
    talk = chat(99)
    talk.ask("hello")
    talk.answered("hi")
    path = tmp_path / "chat.jsonl"
    assert talk.command(f"/save {path}") == f"wrote {path}"
    record = json.loads(path.read_text())
    assert [row["role"] for row in record["messages"]] == ["system", "user", "assistant"]
    assert talk.command("/clear") == "cleared" and talk.turns == []
    assert len(talk.ask("again")[0]) == 7
    assert all(word in talk.command("/help") for word in ("/clear", "/save", "/help"))
    for line, part in (("/save", "/save chat.jsonl"), ("/cler", "did you mean")):
        with pytest.raises(ConfigError, match=part):
            talk.command(line)

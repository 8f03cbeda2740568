"""A chat on a terminal keeps what fits, says what it drops, and obeys its commands."""

import json

import pytest

from jaxgen.cli.conversation import Conversation
from jaxgen.errors import ConfigError

SYSTEM = {"role": "system", "content": "ss"}


def chat(room, first=(SYSTEM,), path=None):
    """A chat in which each letter is a token."""
    encode = lambda rows: [0] * sum(len(row["content"]) for row in rows)  # noqa: E731
    return Conversation(first, encode, room, path)


def said(text):
    return [{"role": "assistant", "content": text}]


def test_the_oldest_turns_are_dropped_whole_until_the_chat_fits():
    talk = chat(20)
    for turn in range(3):
        ids, dropped = talk.ask("qqqq")
        assert (len(ids), dropped) == [(6, 0), (14, 0), (14, 1)][turn]
        talk.answered(said("aaaa"))
    ids, dropped = talk.ask("q" * 18)
    assert (len(ids), dropped) == (20, 2) and len(talk.messages) == 2
    talk.answered(said("a"))
    with pytest.raises(ConfigError, match="shorten it by 1"):
        talk.ask("q" * 19)
    assert [row["content"] for row in talk.messages[1:]] == ["q" * 18, "a"]
    assert len(talk.turns) == 8  # what has left the context is kept


def test_commands_clear_save_and_are_listed(tmp_path):
    talk = chat(99)
    talk.ask("hello")
    talk.answered(said("hi"))
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


def test_a_chat_goes_on_from_its_file_with_all_that_was_said(tmp_path):
    path = tmp_path / "chat.jsonl"
    for turn in range(3):
        talk = chat(14, path=path)
        assert len(talk.turns) == 2 * turn
        talk.ask("qqqq")
        talk.answered(said("aaaa"))
    fresh = chat(14)
    assert fresh.command(f"/load {path}") == f"6 messages of {path}"
    assert (fresh.first, fresh.turns) == ([SYSTEM], talk.turns)
    assert fresh.ask("qqqq")[1] == 2 and len(fresh.messages) == 4


def test_a_message_without_an_answer_is_forgotten(tmp_path):
    talk = chat(99)
    talk.ask("hello")
    talk.withdraw()
    assert talk.turns == []
    (tmp_path / "open.jsonl").write_text('{"messages": [{"role": "user", "content": "hm"}]}')
    talk.load(tmp_path / "open.jsonl")
    assert talk.turns == []


NO_CHATS = {
    "no JSON": ("{", "is no JSON"),
    "two": ('{"messages": []}\n{"messages": []}', "holds 2 chats"),
    "no messages": ('{"messages": [3]}', "messages that are none"),
    "other system": ('{"messages": [{"role": "system", "content": "tt"}]}', "leave out --system"),
}


@pytest.mark.parametrize(("text", "message"), NO_CHATS.values(), ids=NO_CHATS)
def test_a_file_without_a_chat_is_refused(text, message, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        chat(9, path=path)

"""What a chat template reads beside the messages reaches it, and what it does not is refused."""

import io
import json

import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli import app, outputs, start
from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate, write_chat_template
from jaxgen.text import batch_decoding, tasks
from jaxgen.text.batch_decoding import Completion, Reason
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.protocol import Special

USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
TEMPLATE = (
    "{%- for m in messages %}{{ m.role[0] }}{{ m.content }}{%- endfor %}"
    "{%- for tool in tools or [] %}T{{ tool.function.name }}{%- endfor %}"
    "{%- if enable_thinking is defined and enable_thinking is false %}N{%- endif %}"
    "{%- if mood is defined %}{{ mood }}{%- endif %}"
)


def bytes_with_marks():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<|end|>"])
    return HuggingFace(engine.to_str().encode(), Special(eos=256))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = jaxgen.ModelConfig(vocab_size=257, context=64, layers=1, d_model=8, heads=2)
    home = tmp_path_factory.mktemp("chat") / "model"
    jaxgen.save(home, config, random_params(config), tokenizer=bytes_with_marks())
    write_chat_template(home, ChatTemplate(TEMPLATE, {}))
    return home


@pytest.fixture
def prompts(folder, monkeypatch):
    """The texts of the chats that are answered."""
    found, tokenizer = [], bytes_with_marks()

    def complete(group):
        found.extend(tokenizer.decode(one.ids) for one in group.requests)
        return [[Completion("text", Reason.STOP, [65], 1)] for _ in group.requests]

    monkeypatch.setattr(batch_decoding, "complete", complete)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    return found


def test_tools_and_values_reach_the_template_by_python(folder, prompts):
    session = jaxgen.open(folder)
    session.chat(USER, tools=TOOLS, max_new_tokens=2, beams=2)
    session.chat(USER, chat_template_kwargs={"enable_thinking": False}, beams=2)
    own = {"messages": USER, "tools": [], "chat_template_kwargs": {"mood": "own"}}
    tasks.reply(session.model, [USER, own], tools=TOOLS, chat_template_kwargs={"mood": "x"})
    assert sorted(prompts) == sorted(["uHiTadd", "uHiN", "uHiTaddx", "uHiown"])


def test_values_reach_the_template_by_the_verb(folder, prompts, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    words = ["chat", str(folder), "Hi", "--tools", str(tmp_path / "tools.json")]
    values = ["enable_thinking=false", "mood=2 words"]
    for value in values:
        words += ["--template-value", value]
    assert app.main(words) == 0
    rows = [{"messages": USER}, {"messages": USER, "tools": TOOLS},
            {"messages": USER, "chat_template_kwargs": {"mood": "!"}}]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["chat", str(folder), "--input", str(tmp_path / "chats.jsonl")]
    assert app.main([*words, "--template-value", "mood=?"]) == 0
    assert prompts[0] == "uHiTaddN2 words"
    assert sorted(prompts[1:]) == sorted(["uHi?", "uHiTadd?", "uHi!"])


def test_lines_of_a_pipe_are_messages_or_chats(folder, prompts, monkeypatch):
    for text in (b"Hi\n\nHo\n", b'{"messages": [{"role": "user", "content": "Hi"}]}\n'):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        assert app.main(["chat", str(folder), "--template-value", "mood=?"]) == 0
    assert prompts == ["uHi?", "uHo?", "uHi?"]


def test_values_reach_the_template_of_a_conversation(folder, monkeypatch, capsys):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    seen = []

    class Heard:
        def __init__(self, session):
            self.model, self.session = session.model, session
            self.context = session.context

        def chat_ids(self, messages, template, **values):
            seen.append(values)
            return self.session.chat_ids(messages, template, **values)

        def stream(self, ids, settings):
            yield "!"

    from jaxgen.text import session as sessions

    real = sessions.open_session
    monkeypatch.setattr(sessions, "open_session", lambda *a, **k: Heard(real(*a, **k)))
    monkeypatch.setattr(outputs, "converse", lambda what, answer: answer(0, "Hi"))
    assert app.main(["chat", str(folder), "--template-value", "enable_thinking=false"]) == 0
    assert seen == [{"enable_thinking": False}]


def test_messages_are_turns_of_one_conversation_where_a_file_keeps_it(folder, tmp_path, prompts):
    path = str(tmp_path / "chat.jsonl")
    for words in (["One", "Two"], ["Three"]):
        assert app.main(["chat", str(folder), *words, "--conversation", path]) == 0
    rows = json.loads((tmp_path / "chat.jsonl").read_text())["messages"]
    assert [row["content"] for row in rows if row["role"] == "user"] == ["One", "Two", "Three"]
    assert [row["role"] for row in rows] == ["user", "assistant"] * 3


REFUSED = {
    "samples": (["--conversation", "a.jsonl", "--samples", "2"], "--samples has no effect"),
    "output": (["--conversation", "a.jsonl", "--output", "b.txt"], "separate chats"),
    "schemas and functions": (["--tools", "one.json", "--tools", "mcp:x"], "must be the only one"),
    "no server": (["--tools", "mcp:no-such-program"], "mcp:no-such-program can't be started"),
    "no functions": (["--tools", "none.py"], "--tools none.py is no file"),
    "not read": (["--template-value", "enable_thinkin=false"], "did you mean 'enable_thinking'"),
    "the chat's": (["--template-value", "messages=[]"], "the chat itself says that"),
    "no value": (["--template-value", "enable_thinking"], "must be KEY=VALUE"),
    "no list": (["--tools", "one.json"], "holds no list"),
    "no JSON": (["--tools", "bad.json"], "is no JSON"),
    "no file": (["--tools", "none.json"], "--tools: No such file"),
}


@pytest.mark.parametrize(("words", "told"), REFUSED.values(), ids=REFUSED)
def test_what_the_template_can_not_read_is_one_line(
    words, told, folder, prompts, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text(json.dumps(TOOLS[0]))
    (tmp_path / "bad.json").write_text("[")
    assert app.main(["chat", str(folder), "Hi", *words]) == 2
    assert told in capsys.readouterr().err and not prompts


def test_a_line_of_the_wrong_form_is_named(folder, prompts, tmp_path, capsys):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": USER, "tools": "add"}))
    assert app.main(["chat", str(folder), "--input", str(tmp_path / "chats.jsonl")]) == 2
    assert "chats.jsonl:1: tools is no list" in capsys.readouterr().err


def test_tools_that_a_template_does_not_read_are_refused(folder):
    session = jaxgen.open(folder)
    plain = ChatTemplate("{{ messages[0].content }}", {}, "plain.jinja")
    with pytest.raises(ConfigError, match=r"has no effect: plain\.jinja does not read it"):
        session.chat_ids(USER, plain, tools=TOOLS)
    assert session.chat_ids(USER, plain, tools=None)

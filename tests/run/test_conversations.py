"""Prompts with completions, and chats, train a decoder; the run then answers as it was taught."""

import json
import shutil
import textwrap

import numpy as np
import pytest

import jaxgen
from jaxgen import data
from jaxgen.errors import ConfigError, DataError, MissingPackageError
from jaxgen.pretrained.chat_template import ChatTemplate, encode_chat, write_chat_template
from jaxgen.run import conversations, inputs, training
from jaxgen.run.folder import existing_settings
from jaxgen.run.settings import build_settings
from jaxgen.tokens import load as load_tokenizer
from jaxgen.tokens.plain import Bytes

MODEL = {"context": 64, "layers": 1, "d_model": 16, "heads": 2, "positions": "rope"}
TRAIN = {"steps": 2, "batch": 4, "warmup": 1, "validate_every": 2, "log_every": 1}
CHATS = [
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": f"What is {n}?"},
        {"role": "assistant", "content": f"It is <s>{n}</s>."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    for n in range(40)
]


def run_of(folder, records, **sections):
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = {"model": MODEL, "train": TRAIN} | sections
    given["data"] = {"files": [str(path)], "valid_fraction": 0.2} | sections.get("data", {})
    training.train(build_settings(given), folder / "run", cache=folder / "cache")
    return folder / "run"


def test_a_decoder_learns_completions_of_prompts(tmp_path):
    records = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(60)]
    run = run_of(
        tmp_path, records, tokenizer={"kind": "bytes"}, objective={"name": "pairs"},
        data={"sides": ["prompt", "completion"]},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["loss"] for row in rows if row["kind"] == "valid"]).all()


def record_encoder_of(tokenizer, source):
    return conversations.RecordEncoder(tokenizer, encoder_of(tokenizer, source), "chat")


def encoder_of(tokenizer, source, names=None, **more):
    return conversations.ChatEncoder(tokenizer, ChatTemplate(source, names or {}, **more))


def learnt(tokenizer, example):
    """Return the texts of an example that are learnt, one a run of the mask."""
    ids, mask = example
    assert len(ids) == len(mask) and set(mask) <= {0, 1}
    runs, before = [], 0
    for token, one in zip(ids, mask, strict=True):
        runs += [[]] if one and not before else []
        if one:
            runs[-1].append(token)
        before = one
    return [tokenizer.decode(run) for run in runs]


def test_a_chat_is_learnt_as_it_will_be_asked_for(tmp_path):
    run = run_of(
        tmp_path, [{"messages": chat} for chat in CHATS],
        tokenizer={"kind": "bpe", "vocab_size": 310}, objective={"name": "chat"},
        sample={"prompts": ["What is 3?"], "examples": 1, "max_new_tokens": 4},
    )  # fmt: skip
    rows = dict(inputs.tokenize(existing_settings(run), cache=tmp_path / "cache"))
    assert "chats," in rows["train"] and "bytes" not in rows["train"]
    tokenizer = load_tokenizer(run / "tokenizer")
    template = conversations.template_of(existing_settings(run), tokenizer, run)
    encoder = conversations.ChatEncoder(tokenizer, template)
    ((ids, mask),), note = encoder.examples({"messages": CHATS[3]})
    assert not note and learnt(tokenizer, (ids, mask)) == [" It is <s>3</s>.", " Yes."]
    session, eos = jaxgen.open(run), tokenizer.special.eos
    for turn in (2, 4):
        prompt = list(session.chat_ids(CHATS[3][:turn]))
        assert ids[: len(prompt)] == prompt and mask[len(prompt)] and not mask[len(prompt) - 1]
    # What somebody writes is no mark: the one eos of a turn is the template's, and is learnt.
    assert [m for i, m in zip(ids, mask, strict=True) if i == eos] == [0, 0, 1, 0, 1]
    shown = (run / "samples/2.txt").read_text()
    assert "What is 3? -> " in shown and "Be short." in shown and "Assistant: -> " in shown


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>think:{% endif %}"
)
FORGETFUL = (
    "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
# A turn that is not the last one loses what stands before the bar; eos ends the last one alone.
SHRINKING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{{ m.content if loop.last else m.content.split('|')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% else %}</s>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_template_may_open_a_turn_otherwise_but_not_change_what_came_before(tmp_path):
    tokenizer = tokens_of(tmp_path)
    chat = {"messages": CHATS[0][1:3]}
    encoder = encoder_of(tokenizer, THINKING)
    ((ids, mask),), _ = encoder.examples(chat)
    whole = encode_chat(encoder.template, tokenizer, CHATS[0][1:3], answer=False)
    # Nothing of the template ends the turn, so eos does.
    assert ids == [*whole, tokenizer.special.eos] and mask[-1]
    assert tokenizer.decode(ids[: mask.index(1)]).endswith("<assistant>")
    encoder = record_encoder_of(tokenizer, FORGETFUL)
    (refused,) = encoder.encode_records([json.dumps(chat)])
    assert "changes what comes before message 1 once it is there" in refused.line
    with pytest.raises(DataError, match=r"records.jsonl:1: the template changes .*on_bad_record"):
        path = tmp_path / "records.jsonl"
        path.write_text(json.dumps(chat) + "\n")
        settings = data.DataSettings(files=(str(path),), valid_fraction=0.0, test_fraction=0.0)
        data.prepare(settings, encoder, tmp_path, form="messages")


def test_a_turn_that_is_laid_otherwise_later_is_learnt_as_it_is_asked_for(tmp_path):
    tokenizer = tokens_of(tmp_path)
    encoder = encoder_of(tokenizer, SHRINKING)
    chat = [{"role": role, "content": content} for role, content in (
        ("user", "a"), ("assistant", "x|b"), ("user", "c"), ("assistant", "d"),
        ("user", "e"), ("assistant", "f"))]  # fmt: skip
    examples, _ = encoder.examples({"messages": chat})
    # "x|b" is "b" in the chat of the turns that follow, of which the thought is gone.
    assert [learnt(tokenizer, example) for example in examples] == [["x|b"], ["d", "f"]]
    ids = examples[1][0]
    assert "x" not in tokenizer.decode(ids) and ids[-2:] == 2 * [tokenizer.special.eos]
    one = {"messages": chat, "from": 4}
    assert [learnt(tokenizer, example) for example in encoder.examples(one)[0]] == [["f"]]
    chat[3]["weight"] = 0
    examples, _ = encoder.examples({"messages": chat})
    assert [learnt(tokenizer, example) for example in examples] == [["x|b"], ["f"]]


def test_marks_of_a_template_say_what_is_learnt_and_win_with_a_word(tmp_path):
    tokenizer = tokens_of(tmp_path)
    chat = {"messages": CHATS[3]}
    marked, note = encoder_of(tokenizer, MARKED).examples(chat)
    plain = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert (marked, "") == encoder_of(tokenizer, plain).examples(chat) and not note
    wider = MARKED.replace("<assistant>{% generation %}", "{% generation %}<assistant>")
    ((ids, mask),), note = encoder_of(tokenizer, wider).examples(chat)
    assert "as the template's {% generation %} marks say" in note
    assert ids == marked[0][0] and sum(mask) > sum(marked[0][1])
    assert learnt(tokenizer, (ids, mask))[1].startswith("<assistant>")
    outside = MARKED.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>")
    assert encoder_of(tokenizer, outside).examples(chat)[0] == marked  # the end of a turn, always
    empty = MARKED.replace("{{ m.content }}</s>{% endg", "{% endg").replace("{% endg", "{% endg")
    encoder = record_encoder_of(tokenizer, empty)
    (refused,) = encoder.encode_records([json.dumps(chat)])
    assert refused.line == "no token of the chat is the assistant's"


def test_a_template_that_writes_the_date_keeps_that_of_the_run(tmp_path):
    path, tokenizer = tmp_path / "own.jinja", tokens_of(tmp_path)
    path.write_text("{{ strftime_now('%Y-%m-%d') }}" + MARKED)
    settings = build_settings(
        {"objective": {"name": "chat", "template": str(path)}, "model": MODEL}
    )
    template = conversations.template_of(settings, tokenizer, None)
    assert template.today
    write_chat_template(tmp_path, template._replace(today="2001-02-03"))
    kept = conversations.template_of(settings, tokenizer, tmp_path)
    ((ids, _),), _ = conversations.ChatEncoder(tokenizer, kept).examples({"messages": CHATS[0]})
    assert tokenizer.decode(ids).startswith("2001-02-03")
    other = conversations.ChatEncoder(tokenizer, kept._replace(today="2001-02-04"))
    assert other.fingerprint != conversations.ChatEncoder(tokenizer, kept).fingerprint


def tokens_of(folder):
    path = folder / "words.jsonl"
    texts = [row["content"] for chat in CHATS for row in chat] + [THINKING, "think:assistant"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = build_settings(
        {"data": {"files": [str(path)]}, "tokenizer": {"kind": "bpe", "vocab_size": 310}}
    )
    from jaxgen.run.inputs import make_tokenizer

    return make_tokenizer(given)


@pytest.mark.parametrize(
    ("sections", "part"),
    [({"tokenizer": {"kind": "chars"}}, "needs a tokenizer with an eos"),
     ({"objective": {"name": "chat", "template": "none.jinja"},
       "tokenizer": {"kind": "bpe", "vocab_size": 310}}, "objective.template=none.jinja"),
     ({"tokenizer": {"kind": "bpe", "vocab_size": 310, "dropout": 0.1}}, "dropout=0.1 has no"),
     ({"objective": {"name": "pairs", "template": "a"}}, "has no effect with name=pairs"),
     ({"objective": {"name": "pairs", "start": 3}}, "objective.start=3 has no effect")],
)  # fmt: skip
def test_what_no_chat_can_be_made_of_is_refused(tmp_path, sections, part):
    with pytest.raises(ConfigError) as error:
        run_of(tmp_path, [{"messages": chat} for chat in CHATS], **{
            "objective": {"name": "chat"}, **sections})  # fmt: skip
    assert part in str(error.value)


def test_a_template_of_ones_own_lays_the_chats(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(THINKING)
    sections = {"objective": {"name": "chat", "template": str(path)}, "model": MODEL}
    settings, tokenizer = build_settings(sections), tokens_of(tmp_path)
    assert conversations.template_of(settings, tokenizer, None).source == THINKING
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="'utf-8' codec"):
        conversations.template_of(settings, tokenizer, None)


def test_a_missing_package_is_no_fault_of_a_chat(monkeypatch):
    def without(*given, **more):
        raise MissingPackageError("a chat template needs the `jinja2` package")

    monkeypatch.setattr(conversations, "lay_chat", without)
    encoder = encoder_of(Bytes(), "{{ messages }}")
    with pytest.raises(MissingPackageError, match="jinja2"):
        encoder.examples({"messages": CHATS[0]})


def test_a_corpus_without_chats_is_refused():
    settings = data.DataSettings(corpus="python-docs")
    with pytest.raises(ConfigError, match="holds no messages"):
        list(data.documents(settings, form="messages"))


def test_docstrings_are_chats_that_ask_for_a_function(tmp_path, monkeypatch):
    shutil.copy(textwrap.__file__, tmp_path)  # all of the library: tests/data/test_corpora.py
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    settings = data.DataSettings(corpus="python-docstrings")
    found = {document.text for document in data.documents(settings, form="messages")}
    (said,) = [text for text in found if '"What does textwrap.dedent do?"' in text]
    asked, answer = json.loads(said)["messages"]
    assert (asked["role"], answer["role"]) == ("user", "assistant")
    assert answer["content"] == "Remove any common leading whitespace from every line in `text`."

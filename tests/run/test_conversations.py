"""Prompts with completions, and chats, train a decoder; the run then answers as it was taught."""

import json

import numpy as np
import pytest

import jaxgen
from jaxgen import data
from jaxgen.errors import ConfigError, DataError
from jaxgen.pretrained.chat_template import ChatTemplate, encode_chat
from jaxgen.run import conversations, inputs, training
from jaxgen.run.folder import existing_settings
from jaxgen.run.settings import build_settings
from jaxgen.tokens import load as load_tokenizer

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


def test_a_chat_is_learnt_turn_by_turn_as_it_will_be_asked(tmp_path):
    run = run_of(
        tmp_path, [{"messages": chat} for chat in CHATS],
        tokenizer={"kind": "bpe", "vocab_size": 310}, objective={"name": "chat"},
        sample={"prompts": ["What is 3?"], "max_new_tokens": 4},
    )  # fmt: skip
    rows = dict(inputs.tokenize(existing_settings(run), cache=tmp_path / "cache"))
    assert "answers," in rows["train"] and "bytes" not in rows["train"]
    tokenizer = load_tokenizer(run / "tokenizer")
    template = conversations.template_of(existing_settings(run), tokenizer, run)
    encoder = conversations.ChatEncoder(tokenizer, template)
    document = [json.dumps(CHATS[3]), "4"]
    prompt, answer = encoder.encode_documents(document, None)
    assert prompt == list(jaxgen.open(run).chat_ids(CHATS[3][:4]))
    assert tokenizer.decode(answer).strip() == "Yes." and answer[-1] == tokenizer.special.eos
    # What somebody writes is no mark: the one eos of a turn is the template's.
    _, answer = encoder.encode_documents([document[0], "2"], None)
    assert answer.count(tokenizer.special.eos) == 1
    assert "What is 3? -> " in (run / "samples/2.txt").read_text()


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>think:{% endif %}"
)
FORGETFUL = (
    "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def test_a_template_may_open_a_turn_otherwise_but_not_change_what_came_before(tmp_path):
    tokenizer = tokens_of(tmp_path)
    chat = [json.dumps(CHATS[0][1:3]), "1"]
    template = ChatTemplate(THINKING, {})
    encoder = conversations.ChatEncoder(tokenizer, template)
    prompt, answer = encoder.encode_documents(chat, None)
    whole = encode_chat(template, tokenizer, CHATS[0][1:3], answer=False)
    assert [*prompt, *answer][: len(whole)] == whole and answer[-1] == tokenizer.special.eos
    assert tokenizer.decode(prompt).endswith("<assistant>")
    with pytest.raises(DataError, match="give another"):
        conversations.ChatEncoder(tokenizer, ChatTemplate(FORGETFUL, {})).encode_documents(
            chat, None
        )


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


def test_corpora_that_are_built_in_hold_no_chats():
    settings = data.DataSettings(corpus="python-docs")
    with pytest.raises(ConfigError, match="holds no messages"):
        list(data.documents(settings, form="messages"))

"""Prompts and answers for a decoder: the answers alone are learnt, and nothing is lost."""

import json

import numpy as np
import pytest
from data_makers import bytes_tokenizer

from jaxgen import data
from jaxgen.data.answers import answer_rows
from jaxgen.errors import ConfigError, DataError

BOS, EOS = 256, 257


def prepared(folder, count=40):
    """Write prompts and completions of different lengths; return their corpus."""
    rows = [
        {"prompt": f"double {n}: ", "completion": f"{'=' * (n % 7)}{2 * n}"} for n in range(count)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = data.DataSettings(
        files=(str(path),), sides=("prompt", "completion"), valid_fraction=0.0, test_fraction=0.0
    )
    return data.prepare(settings, bytes_tokenizer(), folder / "cache", form="pairs"), rows


def batch_of(rows, epoch=-1):
    numbers = np.arange(rows.count)
    return rows.batch(numbers, np.full(rows.count, epoch), np.zeros(rows.count, np.uint64))


def learnt(batch):
    """Return {prompt: what is learnt after it} of a batch, each segment read as bytes."""
    pairs = {}
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            at = np.flatnonzero(batch["segments"][row] == segment)
            np.testing.assert_array_equal(batch["positions"][row][at], np.arange(len(at)))
            weights, targets = batch["weights"][row][at], batch["targets"][row][at]
            np.testing.assert_array_equal(batch["tokens"][row][at][1:], targets[:-1])
            first = int(np.argmax(weights))
            assert weights[first:].all() and not weights[:first].any()
            prompt = batch["tokens"][row][at][: first + 1]
            pairs[tuple(prompt)] = tuple(targets[first:])
    return pairs


def ids(text):
    return tuple(text.encode())


@pytest.mark.parametrize("epoch", [-1, 0, 3])
def test_every_answer_is_learnt_once_after_its_prompt_and_no_prompt_is(tmp_path, epoch):
    corpus, records = prepared(tmp_path)
    rows = answer_rows(corpus.train, width=64, most=(64, 64), trim=(1, 1), seed=0, name="x")
    pairs = learnt(batch_of(rows, epoch))
    assert pairs == {(BOS, *ids(row["prompt"])): (*ids(row["completion"]), EOS) for row in records}
    assert rows.cut == 0 and rows.count < len(records) / 2  # several pairs share a row


def test_of_what_is_too_long_the_end_of_the_prompt_and_the_begin_of_the_answer_stay(tmp_path):
    corpus, records = prepared(tmp_path)
    rows = answer_rows(corpus.train, width=8, most=(8, 3), trim=(1, 1), seed=0, name="x")
    assert rows.cut == len(records)
    for prompt, answer in learnt(batch_of(rows)).items():
        assert 1 <= len(answer) <= 3 and len(prompt) + len(answer) <= 9
        whole = next(r for r in records if ids(r["prompt"])[-len(prompt) :] == prompt)
        assert (*ids(whole["completion"]), EOS)[: len(answer)] == answer


def messages(folder, rows, name="chats.jsonl", **settings):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.DataSettings(files=(str(path),), **settings)


def test_a_chat_is_a_document_for_each_turn_of_the_assistant_in_either_spelling(tmp_path):
    chat = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]  # fmt: skip
    names = {"user": "human", "assistant": "gpt"}
    other = [{"from": names[row["role"]], "value": row["content"]} for row in chat]
    tally = data.Tally()
    read = [
        [(json.loads(d.text), d.target) for d in data.documents(settings, tally, form="messages")]
        for settings in (
            messages(tmp_path, [{"messages": chat}, {"messages": chat[:1]}]),
            messages(tmp_path, [{"talk": other}], "other.jsonl", field="talk"),
        )
    ]
    assert read[0] == read[1] == [(chat, "1"), (chat, "3")]
    assert tally.skipped == {"chat without an answer": 1}


@pytest.mark.parametrize(
    ("value", "part"),
    [("hello", "'messages' is a string, not a list of messages"),
     ([{"content": "x"}], "message 0 of 'messages' has no role")],
)  # fmt: skip
def test_a_record_without_messages_is_named(tmp_path, value, part):
    settings = messages(tmp_path, [{"messages": value}])
    with pytest.raises(DataError, match=part):
        list(data.documents(settings, form="messages"))


def test_chats_are_no_plain_text_and_have_no_sides(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    settings = data.DataSettings(files=(str(tmp_path / "a.txt"),))
    with pytest.raises(DataError, match="plain text; chats are records with 'messages'"):
        list(data.documents(settings, form="messages"))
    settings = data.DataSettings(files=("a.jsonl",), sides=("a", "b"))
    with pytest.raises(ConfigError, match="no effect on chats"):
        list(data.documents(settings, form="messages"))

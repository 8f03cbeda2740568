"""Prompts and answers for a decoder: the answers alone are learnt, and nothing is lost."""

import json
from functools import partial

import numpy as np
import pytest
from data_makers import bytes_tokenizer

from jaxgen import data
from jaxgen.data.answers import answer_rows
from jaxgen.data.completions import completion_rows
from jaxgen.data.pack import documents_of
from jaxgen.data.parallel import EncodedRecord, Refused
from jaxgen.errors import ConfigError, DataError
from jaxgen.tokens.protocol import Special

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
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.DataSettings(files=(str(path),), **settings)


CHAT = [
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
]  # fmt: skip


def test_a_chat_is_one_document_in_either_spelling(tmp_path):
    names = {"user": "human", "assistant": "gpt"}
    other = [{"from": names[row["role"]], "value": row["content"]} for row in CHAT]
    parts = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    read = [
        [json.loads(d.text) for d in data.documents(settings, form="messages")]
        for settings in (
            messages(tmp_path, [{"messages": CHAT, "tools": "[]"}]),
            messages(tmp_path, [{"talk": other}], "other.jsonl", field="talk"),
            messages(tmp_path, [parts], "parts.jsonl"),
        )
    ]
    assert read[0] == read[1] == [{"messages": CHAT}]
    assert read[2] == [{"messages": CHAT, "from": 3}]


def says(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("record", "part"),
    [({"messages": "hello"}, "'messages' is a string, not a list of messages"),
     ({"messages": []}, "'messages' is an empty list"),
     ({"messages": [{"content": "x"}]}, "message 0 of 'messages' has no role"),
     ({"messages": [CHAT[0], says("assistnat", "b")]}, "role 'assistnat' (did you mean 'assist"),
     ({"messages": [CHAT[0], says("assistant", " ")]}, "message 1 of 'messages' has no content"),
     ({"messages": [CHAT[0], says("assistant", None)]}, "message 1 of 'messages' has no content"),
     ({"messages": [says("user", 3)]}, "a content that is a number, not a text"),
     ({"messages": [says("user", [{"type": "image"}])]}, "a part of the type 'image'"),
     ({"messages": CHAT[:1]}, "has no turn of the assistant to learn from"),
     ({"messages": [CHAT[0], says("assistant", "b", weight=0)]}, "has no turn of the assistant"),
     ({"messages": [CHAT[0], says("assistant", "b", weight=0.5)]}, "weight=0.5; 0 (not learnt)"),
     ({"messages": CHAT, "tools": "["}, "'tools' is not JSON"),
     ({"messages": CHAT, "tools": {"a": 1}}, "'tools' is an object, not a list of JSON schemas"),
     ({"prompt": "a", "completion": "b"}, "plain texts are objective.name=pairs"),
     ({"text": "a"}, "has no field 'messages'; it has 'text'")],
)  # fmt: skip
def test_a_record_that_is_no_chat_is_named_and_can_be_left_out(tmp_path, record, part):
    settings = messages(tmp_path, [{"messages": CHAT}, record])
    with pytest.raises(DataError) as error:
        list(data.documents(settings, form="messages"))
    assert part in str(error.value) and "chats.jsonl:2" in str(error.value)
    tally, skip = (
        data.Tally(),
        messages(tmp_path, [record, {"messages": CHAT}], on_bad_record="skip"),
    )
    assert len(list(data.documents(skip, tally, form="messages"))) == 1 and tally.bad == 1


def test_a_tool_may_answer_nothing_and_a_call_needs_no_words(tmp_path):
    call = says("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": {}}}])
    chat = [CHAT[0], call, says("tool", ""), says("assistant", "b")]
    settings = messages(tmp_path, [{"messages": chat}])
    (document,) = data.documents(settings, form="messages")
    assert json.loads(document.text)["messages"] == chat


class Letters:
    """An encoder of records: texts of letters, of which capitals are learnt."""

    vocab_size, special, fingerprint = 300, Special(), "letters"

    def encode_many(self, texts):
        return [list(text.encode()) for text in texts]

    def encode_records(self, texts):
        for text in texts:
            rows = json.loads(text)["messages"]
            words = [row["content"] for row in rows]
            if "?" in words:
                yield Refused("asks", "asks too much")
                continue
            ids = list("".join(words).encode())
            yield EncodedRecord([ids, [int(i < 97) for i in ids]], "looked at" if ids else "")


def prepared_letters(folder, words, **settings):
    rows = [{"messages": [says("user", word), says("assistant", "Z")]} for word in words]
    settings = messages(folder, rows, valid_fraction=0.0, test_fraction=0.0, **settings)
    return data.prepare(settings, Letters(), folder / "cache", form="messages")


@pytest.mark.parametrize("epoch", [-1, 0, 3])
def test_what_the_mask_says_is_learnt_once_and_nothing_else(tmp_path, epoch):
    corpus = prepared_letters(tmp_path, ["aBc", "defG", "h", "IjKlM", "n"])
    rows = completion_rows(corpus.train, width=12, too_long="cut", seed=0, name="x")
    batch, texts, learnt = batch_of(rows, epoch), [], 0
    for row, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            np.testing.assert_array_equal(batch["positions"][row][at], np.arange(len(at)))
            np.testing.assert_array_equal(
                batch["tokens"][row][at][1:], batch["targets"][row][at][:-1]
            )
            targets = batch["targets"][row][at]
            texts.append(bytes([batch["tokens"][row][at][0], *targets]).decode())
            np.testing.assert_array_equal(batch["weights"][row][at], targets < 97)
            learnt += int(batch["weights"][row][at].sum())
    assert sorted(texts) == sorted(["aBcZ", "defGZ", "hZ", "IjKlMZ", "nZ"])
    assert learnt == batch["weights"].sum() and rows.count < 5 and not rows.notes()
    assert corpus.notes == ("5 looked at",)


def test_a_text_that_is_too_long_loses_its_end_or_goes_and_that_is_said(tmp_path):
    corpus = prepared_letters(tmp_path, ["aBcdefgh", "abcdefgh", "a"])
    make = partial(completion_rows, corpus.train, width=4, seed=0, name="x")
    cut = make(too_long="cut")
    assert cut.notes() == [
        "1 of 3 texts are longer than model.context=4 and lose their end",
        "1 of 3 texts leave nothing to learn in model.context=4, and are left out",
    ]
    batch = batch_of(cut)
    assert batch["weights"].sum() == 2 and set(batch["targets"][batch["weights"] > 0]) == {66, 90}
    assert make(too_long="drop").notes() == [
        "2 of 3 texts are longer than model.context=4, and are left out"
    ]
    with pytest.raises(DataError, match=r"document 0 of train, from .*chats.jsonl has 9 tokens"):
        make(too_long="refuse")
    corpus = prepared_letters(tmp_path / "b", ["abcdefgh"])
    with pytest.raises(DataError, match="holds no text with anything to learn"):
        completion_rows(corpus.train, width=4, too_long="cut", seed=0, name="x")


def test_a_record_that_an_encoder_refuses_is_named_and_counted(tmp_path):
    with pytest.raises(DataError, match=r"chats.jsonl:2: asks too much; mend it"):
        prepared_letters(tmp_path, ["aB", "?", "cD"])
    corpus = prepared_letters(tmp_path, ["aB", "?", "cD"], on_bad_record="skip")
    assert corpus.skipped == {"asks": 1} and corpus.train.documents == 4
    assert documents_of(corpus.train, 3, 1).endswith("from " + str(tmp_path / "chats.jsonl"))


def test_chats_are_no_plain_text_and_have_no_sides(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    settings = data.DataSettings(files=(str(tmp_path / "a.txt"),))
    with pytest.raises(DataError, match="plain text; chats are records with 'messages'"):
        list(data.documents(settings, form="messages"))
    settings = data.DataSettings(files=("a.jsonl",), sides=("a", "b"))
    with pytest.raises(ConfigError, match="no effect on chats"):
        list(data.documents(settings, form="messages"))

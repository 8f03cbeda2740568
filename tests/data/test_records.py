"""What records are for is told by their fields, and every split of few records has some."""

import json

import pytest
from data_makers import bytes_tokenizer, stories, write_lines

from jaxgen import data
from jaxgen.data import records
from jaxgen.errors import DataError

CHAT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
# A record -> its task, and the keys that read it.
KINDS = [
    ({"prompt": "a", "completion": "b", "id": 3}, "pairs", {"sides": ["prompt", "completion"]}),
    ({"answer": "b", "question": "a"}, "pairs", {"sides": ["question", "answer"]}),
    ({"messages": CHAT}, "chat", {}),
    ({"conversations": CHAT}, "chat", {"field": "conversations"}),
    ({"text": "a", "label": "b"}, "classes", {"sides": ["text", "label"]}),
    ({"sentence": "a", "class": "b"}, "classes", {"sides": ["sentence", "class"]}),
]


@pytest.mark.parametrize(("record", "task", "keys"), KINDS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "pretty.json"])
def test_the_first_record_tells_its_task(tmp_path, record, task, keys, ending):
    path = tmp_path / f"x.{ending}"
    rows = [record, record]
    text = "\n".join(map(json.dumps, rows))
    if ending != "jsonl":
        text = json.dumps(rows, indent=1 if ending == "pretty.json" else None)
    path.write_text("\ufeff" + text)
    found = records.first_record(path)
    assert found == record and records.task_of(found) == task
    assert records.keys_for(task, found) == keys


@pytest.mark.parametrize("record", [{"text": "a"}, {"a": 1, "b": "x"}, {}])
def test_other_records_are_for_no_task(record):
    assert records.task_of(record) is None and records.keys_for("chat", record) is None
    assert records.keys_for("pairs", record) is None


def test_two_texts_of_any_name_are_a_pair_and_plain_text_has_no_record(tmp_path):
    assert records.keys_for("pairs", {"en": "a", "n": 1, "de": "b"}) == {"sides": ["en", "de"]}
    (tmp_path / "a.txt").write_text("{}")
    assert records.first_record(tmp_path / "a.txt") == {}


@pytest.mark.parametrize("count", [2, 3, 10, 19, 20, 25, 60, 120])
@pytest.mark.parametrize("form", ["pairs", "classes", "messages", "text"])
def test_auto_gives_training_and_validation_some_whatever_the_text(tmp_path, count, form):
    for seed in range(3):
        rows = [
            {
                "source": text,
                "target": "ab"[number % 2],
                "text": text,
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": "x"},
                ],
            }
            for number, text in enumerate(stories(count, seed))
        ]
        path = tmp_path / f"{seed}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sides = ("source", "target") if form in ("pairs", "classes") else ()
        settings = data.DataSettings(files=(str(path),), sides=sides)
        splits = [split for split, _ in data.assigned(settings, form=form)]
        assert {"train", "valid"} <= set(splits), (count, seed, splits)


def test_a_split_without_records_counts_records_not_sides(tmp_path):
    rows = [{"source": f"x{i}", "target": "y"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (str(tmp_path / "a.jsonl"),)
    settings = data.DataSettings(files=files, sides=("source", "target"), split="hash")
    with pytest.raises(DataError, match=r"hash split of 3 records.*which counts records"):
        data.prepare(settings, bytes_tokenizer(), tmp_path / "cache", form="pairs")


def test_malformed_files_that_are_left_out_are_named_also_when_shards_are_reused(tmp_path):
    write_lines(tmp_path / "good.jsonl", stories(40))
    for number in range(5):
        (tmp_path / f"latin{number}.txt").write_bytes(b"caf\xe9")
    settings = data.DataSettings(files=(str(tmp_path),), on_bad_record="skip")
    for reused in (False, True):
        corpus = data.prepare(settings, bytes_tokenizer(), tmp_path.parent / "cache")
        (note,) = [note for note in corpus.notes if "malformed" in note]
        assert corpus.reused is reused and ", 5: " in note and note.endswith("; and 2 more")
        assert all(f"latin{number}.txt is not UTF-8" in note for number in range(3)), note


def test_labels_that_a_model_of_text_would_not_see_are_told(tmp_path):
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(stories(40))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = data.DataSettings(files=(str(tmp_path / "a.jsonl"),))
    notes = data.prepare(settings, bytes_tokenizer(), tmp_path / "cache").notes
    assert any("`jaxgen init classes " in note for note in notes), notes


@pytest.mark.parametrize(
    ("name", "raw", "part"),
    [
        (
            "a.txt",
            b"caf\xe9",
            r"\(iconv -f latin1 -t utf-8 FILE\), or leave it out with data.on_bad",
        ),
        ("a.bin", b"\1\0\xff\0", r"a\.bin is no text; give files of text"),
        ("a.jsonl", b'{"prompt": "a", "completion": "b"}', r"`jaxgen init pairs .*a\.jsonl`"),
        ("a.jsonl", b'{"conversations": []}', r"`jaxgen init chat .*a\.jsonl`"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_type(tmp_path, name, raw, part):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=part):
        list(data.documents(data.DataSettings(files=(str(tmp_path / name),))))

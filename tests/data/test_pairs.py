"""Pairs: read from two sides, packed side by side, shuffled as a function of the step."""

import bisect
import gzip
import itertools
import json
import shutil

import numpy as np
import pytest
from data_makers import bytes_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import data
from jaxgen.data.bins import pack
from jaxgen.data.loader import Order
from jaxgen.data.pairs import pair_rows
from jaxgen.errors import ConfigError, DataError

BOS, EOS, START = 256, 257, 256


def parallel(folder, count=120, short=0):
    """Write count lines a side: source "n" as words, target its double."""
    sides = ([f"number {n}" for n in range(count)], [f"twice is {2 * n}" for n in range(count)])
    for side, texts in zip(("en", "de"), sides, strict=True):
        texts = texts[: len(texts) - short] if side == "de" else texts
        path = folder / f"train.{side}.gz"
        path.write_bytes(gzip.compress("".join(text + "\n" for text in texts).encode()))
    return data.DataSettings(
        files=(str(folder / "train.{side}.gz"),), sides=("en", "de"), test_fraction=0.0
    )


def prepared(folder, **change):
    return data.prepare(parallel(folder, **change), bytes_tokenizer(), folder / "c", form="pairs")


def rows_of(corpus, widths=(40, 48)):
    return pair_rows(corpus.train, widths=widths, seed=3, start=START, bos=BOS, eos=EOS)


def texts_of(batch):
    """Return the (source, target) texts of a batch, checked token by token on the way."""
    found = []
    for row in range(len(batch["index"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            source = batch["source"][row][batch["source_segments"][row] == segment]
            inside = batch["segments"][row] == segment
            tokens, targets = batch["tokens"][row][inside], batch["targets"][row][inside]
            assert tokens[0] == START and (tokens[1:] == targets[:-1]).all()
            assert targets[-1] == EOS and source[0] == BOS and source[-1] == EOS
            assert batch["positions"][row][inside].tolist() == list(range(len(tokens)))
            assert (batch["weights"][row][inside] == 1).all()
            found.append(
                (bytes(source[1:-1].tolist()).decode(), bytes(targets[:-1].tolist()).decode())
            )
    assert batch["weights"].sum() == sum(len(target) + 1 for _, target in found)
    return found


def test_an_epoch_holds_every_pair_once_and_the_next_puts_them_together_anew(tmp_path):
    corpus = prepared(tmp_path)
    rows = rows_of(corpus)
    order = Order(rows, rows.count, 7, (0, 1))
    epochs = [texts_of(order[step]) for step in range(2)]
    wanted = sorted((f"number {n}", f"twice is {2 * n}") for n in range(120))
    known = set(wanted)
    assert set(epochs[0]) <= known and len(epochs[0]) == corpus.train.documents // 2
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == len(epochs[0])

    def together(batch):
        """Which sources share a row."""
        found = set()
        for row in range(len(batch["index"])):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            found.add(frozenset(source for source, _ in texts_of(one)))
        return found

    assert together(order[0]) != together(order[1])
    in_order = list(
        data.in_order(corpus.train, context=48, batch=4, objective=lambda *a, **k: rows)
    )
    assert sorted(pair for batch in in_order for pair in texts_of(batch)) == sorted(epochs[0])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=40),
)
def test_packing_loses_no_pair_and_overfills_no_row(lengths):
    sources, targets = np.asarray(lengths).T
    order, ends = pack(sources, targets, (12, 9))
    assert sorted(order) == list(range(len(lengths))) and ends[-1] == len(lengths)
    for begin, end in itertools.pairwise(ends):
        inside = order[begin:end]
        assert len(inside) and sources[inside].sum() <= 12 and targets[inside].sum() <= 9


def test_little_of_a_row_is_padding():
    rng = np.random.default_rng(0)
    sources = rng.integers(6, 40, 4000)
    targets = np.clip(sources + rng.integers(-4, 5, 4000), 4, 48)
    _, ends = pack(sources, targets, (128, 128))
    assert sources.sum() / (128 * (len(ends) - 1)) > 0.93


def test_a_side_longer_than_its_row_is_cut_before_its_eos_and_counted(tmp_path):
    rows = rows_of(prepared(tmp_path), widths=(9, 48))
    batch = rows.batch(np.arange(rows.count), np.full(rows.count, -1), np.zeros(rows.count, "u8"))
    assert rows.cut == rows.lengths.shape[1]
    assert {source for source, _ in texts_of(batch)} == {"number "}


def test_files_for_validation_and_test_are_taken_whole(tmp_path):
    for name, count in (("train", 30), ("valid", 5), ("test", 4)):
        lines = [json.dumps({"q": f"{name} {n}", "a": "yes"}) + "\n" for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    given = {f"{s}files": (str(tmp_path / f"{n}.jsonl"),)
             for s, n in (("", "train"), ("valid_", "valid"), ("test_", "test"))}  # fmt: skip
    asked = data.DataSettings(sides=("q", "a"), **given)
    corpus = data.prepare(asked, bytes_tokenizer(), tmp_path / "c", form="pairs")
    found = [getattr(corpus, split).documents for split in ("train", "valid", "test")]
    assert found == [60, 10, 8]
    again = data.prepare(asked, bytes_tokenizer(), tmp_path / "c", form="pairs")
    assert again.reused and again.digest == corpus.digest
    with pytest.raises(ConfigError, match="exclude each other"):
        data.DataSettings(sides=("q", "a"), valid_fraction=0.1, **given)


def test_sides_of_unequal_length_are_refused_with_both_counts(tmp_path):
    with pytest.raises(DataError, match=r"en\.gz has 120 lines and .*de\.gz has 117 lines"):
        prepared(tmp_path, short=3)


@pytest.mark.parametrize(
    ("fields", "form", "part"),
    [({"files": ("a.{side}.txt",)}, "pairs", "sides"),
     ({"files": ("a.jsonl",), "sides": ("x", "y")}, "text", "no effect on plain text"),
     ({"corpus": "python-docs"}, "pairs", "which are in python-docstrings"),
     ({"files": ("a.jsonl",)}, "classes", "data.sides")],
)  # fmt: skip
def test_forms_that_the_text_does_not_have_are_refused(fields, form, part):
    with pytest.raises(ConfigError, match=part):
        list(data.documents(data.DataSettings(**fields), form=form))


def test_docstrings_are_pairs_of_source_and_summary(tmp_path, monkeypatch):
    shutil.copy(bisect.__file__, tmp_path)  # all of the library: tests/data/test_corpora.py
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    found = list(data.documents(data.DataSettings(corpus="python-docstrings"), form="pairs"))
    insort = next(document for document in found if document.source == "bisect.py")
    assert insort.target == "Insert item x in list a, and keep it sorted assuming a is sorted."


def test_labels_become_the_second_document_of_each_pair(tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_text("".join(json.dumps({"t": f"text {n}", "l": "odd" if n % 2 else "even"}) + "\n"
                            for n in range(40)))  # fmt: skip
    asked = data.DataSettings(files=(str(path),), sides=("t", "l"))
    labels = data.labels_of(asked)
    corpus = data.prepare(asked, bytes_tokenizer(), tmp_path / "c", form="classes", labels=labels)
    shard, ends = corpus.train, corpus.train.offsets.astype(int)
    assert labels == ("even", "odd")
    for n in range(shard.documents // 2):
        text = bytes(shard.tokens[ends[2 * n] + 1 : ends[2 * n + 1] - 1].tolist()).decode()
        assert labels[shard.tokens[ends[2 * n + 1]]] == ("odd" if int(text[5:]) % 2 else "even")
    with pytest.raises(DataError, match="none of the classes"):
        data.prepare(asked, bytes_tokenizer(), tmp_path / "d", form="classes", labels=("even", "x"))

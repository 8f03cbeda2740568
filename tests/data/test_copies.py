"""Copies of training text are those that a search of every place finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.copies import Copy, index_copies
from jaxgen.data.shard import ShardWriter, open_shard
from jaxgen.errors import ConfigError, DataError

few = st.lists(st.integers(0, 2), max_size=12)


def stands(part, document):
    return [i for i in range(len(document) - len(part) + 1) if document[i : i + len(part)] == part]


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(few, min_size=1, max_size=4), query=few, shortest=st.integers(1, 3))
def test_copies_are_the_longest_ones_at_every_place(documents, query, shortest):
    if not any(documents):
        return
    index = index_copies([np.asarray(d, np.uint16) for d in documents])
    expected, reached = [], 0
    for begin in range(len(query)):
        ends = [e for e in range(begin + 1, len(query) + 1)
                if any(stands(query[begin:e], d) for d in documents)]  # fmt: skip
        end = max(ends, default=begin)
        if end > reached and end - begin >= shortest:
            part = query[begin:end]
            expected.append((begin, end - begin, sum(len(stands(part, d)) for d in documents)))
        reached = max(reached, end)
    copies = index.copies(query, shortest=shortest)
    assert [(c.begin, c.length, c.count) for c in copies] == expected
    for c in copies:  # each is where it is said to be
        part = query[c.begin : c.begin + c.length]
        assert c.offset in stands(part, documents[c.document])
        assert index.tokens_of(c.document, c.offset, c.length).tolist() == part
    best = index.longest(query)
    assert (best.length if best else 0) == max((e[1] for e in expected), default=0) or shortest > 1


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(few, min_size=1, max_size=3), query=few)
def test_the_nearest_passage_is_the_window_that_shares_most(documents, query):
    if not any(documents):
        return
    index = index_copies([np.asarray(d, np.int64) for d in documents])

    def grams(part):
        return {tuple(part[i : i + 2]) for i in range(len(part) - 1)}

    size = len(query)
    most = max(
        (len(grams(query) & grams(d[i : i + size])) for d in documents for i in range(len(d) + 1)),
        default=0,
    )
    near = index.nearest(query, width=2, number=1)
    assert (near[0].shared if near else 0) == (most / len(grams(query)) if most else 0)
    for one in near:
        part = documents[one.document][one.offset : one.offset + one.length]
        assert len(grams(query) & grams(part)) / len(grams(query)) == one.shared
        assert one.length <= size


def test_a_shard_of_documents_is_indexed_and_no_copy_crosses_a_border(tmp_path):
    writer = ShardWriter(tmp_path / "train.tokens", vocab_size=70_000, tokenizer="t")
    long = np.random.default_rng(0).integers(0, 70_000, 500)
    writer.add(np.concatenate([long, [7, 8, 9]]), [500, 3], 0)
    writer.close()
    index = index_copies([open_shard(tmp_path / "train.tokens")])
    assert index.documents == 2
    query = [1, *long[100:400].tolist(), 2]
    assert index.longest(query) == Copy(1, 300, 0, 100, 1)
    assert index.longest([*long[-3:].tolist(), 7, 8, 9]).length == 3
    assert index.count([7, 8, 9]) == 1 and index.count([999_999]) == 0


def test_changed_copies_are_near_and_windows_do_not_overlap():
    text = np.arange(1000)
    query = np.concatenate([text[300:340], [5], text[341:380]])
    near = index_copies([text, text[::-1].copy()]).nearest(query, number=2)
    assert near[0].document == 0 and near[0].offset == 300 and near[0].length == 80
    assert near[0].shared == pytest.approx(73 / 77)
    assert len(near) == 1


def test_what_can_not_be_indexed_or_searched_is_refused():
    index = index_copies([np.arange(9)])
    assert index.copies([]) == [] and index.longest([]) is None and index.nearest([1]) == []
    for call, name in (
        (lambda: index.copies([1], shortest=0), "shortest=0"),
        (lambda: index.nearest([1], width=0), "width=0"),
        (lambda: index.nearest([1], number=0), "number=0"),
        (lambda: index.count([-1]), "0 or more"),
    ):
        with pytest.raises(ConfigError, match=name):
            call()
    with pytest.raises(DataError, match="0 tokens"):
        index_copies([])

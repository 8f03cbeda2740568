"""Passages hold all of a text, sentence by sentence, under its headings."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import ConfigError
from jaxgen.knowledge import passages

MARKDOWN = "# Birds\n\nA heron stands. It eats.\n\n## Owls\n\nHoo. 渡し舟。夜。\n"
pieces = st.sampled_from(
    ["A cat.", " ", "\n\n", "\n", "# Head", "Title\n=====\n", "word ", "é🦉", "。", "x" * 30, "1. "]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, max_size=30).map("".join), st.integers(5, 80), st.integers(0, 40))
def test_every_character_is_in_a_passage_and_none_is_too_long(text, size, overlap):
    rows = passages.split(text, size, min(overlap, size - 1))
    held = set()
    for row in rows:
        assert 0 < row.end - row.start <= size
        assert not text[row.start].isspace() and not text[row.end - 1].isspace()
        held |= set(range(row.start, row.end))
    assert held >= {place for place, char in enumerate(text) if not char.isspace()}
    assert [row.start for row in rows] == sorted(row.start for row in rows)
    for before, after in pairwise(rows):
        assert before.end - after.start <= overlap and before.end < after.end


def test_sentences_end_at_marks_items_and_paragraphs():
    text = "One. “Two!” he said? 三。四\n\nfive\n- six\n- v2.5 is seven"
    assert [text[a:b] for a, b in passages.sentences(text)] == [
        *("One.", "“Two!”", "he said?", "三。", "四", "five", "- six", "- v2.5 is seven")
    ]


def test_a_heading_begins_a_passage_and_stands_over_those_that_follow():
    rows = passages.split(MARKDOWN, 24, 0)
    said = [(MARKDOWN[a:b], MARKDOWN[slice(*heading)]) for a, b, heading in rows]
    assert said == [
        ("# Birds\n\nA heron stands.", ""), ("It eats.", "# Birds"),
        ("## Owls\n\nHoo. 渡し舟。夜。", ""),
    ]  # fmt: skip
    underlined = "Owls\n====\n\nOne two three. Four five six."
    (_, second) = passages.split(underlined, 26, 0)
    assert underlined[slice(*second.heading)] == "Owls"


def test_neighbours_share_whole_sentences():
    text = "One a. Two b. Three c. Four d."
    assert [text[row.start : row.end] for row in passages.split(text, 16, 8)] == [
        *("One a. Two b.", "Two b. Three c.", "Three c. Four d.")
    ]
    assert [text[row.start : row.end] for row in passages.split(text, 16, 5)] == [
        *("One a. Two b.", "Three c. Four d.")
    ]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, -1)])
def test_sizes_out_of_range_are_refused(size, overlap):
    with pytest.raises(ConfigError, match="must be"):
        passages.split("a", size, overlap)

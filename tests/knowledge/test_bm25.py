"""BM25 scores are those of its formulas, summed word by word."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.knowledge import bm25

word = st.sampled_from(["heron", "owl", "fish", "night", "dächer", "x9"])
text = st.lists(word, max_size=8).map(" ".join)


def by_hand(texts, query, k1=1.5, b=0.75):
    rows = [bm25.words(t) for t in texts]
    mean = sum(map(len, rows)) / len(rows) or 1e-9
    scores = []
    for row in rows:
        score = 0.0
        for term in bm25.words(query):
            df, tf = sum(term in r for r in rows), row.count(term)
            if not tf:
                continue
            idf = math.log(1 + (len(rows) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(row) / mean))
        scores.append(score)
    return scores


@settings(max_examples=40, deadline=None)
@given(st.lists(text, min_size=1, max_size=6), text)
def test_scores_are_the_sums_of_the_formula(texts, query):
    scores = bm25.scores(bm25.build(texts), f"{query} absent", len(texts))
    np.testing.assert_allclose(scores, by_hand(texts, query), atol=2e-6)


def test_texts_are_counted_in_blocks_of_any_size(monkeypatch):
    texts = [f"heron {'owl ' * (i % 3)}fish{i}" for i in range(40)]
    whole = bm25.build(texts)
    monkeypatch.setattr(bm25, "BLOCK", 7)
    for one, other in zip(whole, bm25.build(texts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_are_those_that_score_and_ties_keep_their_order():
    assert bm25.top([0.0, 2.0, 1.0, 2.0], 3) == [1, 3, 2]
    assert bm25.top([0.0, 1.0], 2) == [1] and bm25.top([], 2) == []


def test_coverage_weighs_rare_words_and_those_of_no_text():
    postings = bm25.build(["heron owl", "heron fish", "heron night"])
    assert bm25.coverage(postings, "heron owl", "owl heron") == 1
    rare, common = (bm25.coverage(postings, "heron owl", t) for t in ("owl", "heron"))
    assert rare > 0.5 > common > 0 and bm25.coverage(postings, "absent owl", "owl") == 0.5
    assert bm25.coverage(postings, "?", "owl") == 0

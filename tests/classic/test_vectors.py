"""Word vectors against gensim: single steps, trees, files, neighbours; GloVe worked by hand."""

import gensim
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gensim.models import KeyedVectors

from jaxgen import ModelConfig, tree
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.models import api
from jaxgen.models.classic import glove, maxent, ngram, template, vectors, word2vec
from jaxgen.models.classic.glove import GloVe
from jaxgen.models.classic.vectors import Vectors
from jaxgen.models.classic.word2vec import Batch, Word2Vec

WORDS, RATE = ["a", "b", "c", "d"], 0.1
RNG = np.random.default_rng(0)
IN, OUT = (RNG.normal(size=(4, 5)).astype(np.float32) for _ in range(2))


def theirs(form, hs):
    """gensim's vectors after it has read the sentence "a b", its only negative word being "c"."""
    model = gensim.models.Word2Vec(
        vector_size=5, window=1, sg=int(form == "skipgram"), hs=hs, negative=0 if hs else 1,
        min_count=1, sample=0, workers=1, sorted_vocab=0, cbow_mean=1, seed=1,
    )  # fmt: skip
    model.build_vocab([["a"] * 5, ["b"] * 4, ["c"] * 2, ["d"]])
    assert model.wv.index_to_key == WORDS
    model.wv.vectors[:] = IN
    out = model.syn1 if hs else model.syn1neg
    out[:] = OUT[: len(out)]
    if not hs:
        model.cum_table = np.asarray([0, 0, 2**31 - 1, 2**31 - 1], np.uint32)
    model.train([["a", "b"]], total_examples=1, epochs=1, start_alpha=RATE, end_alpha=RATE)
    return model, out


@pytest.mark.parametrize("hs", [0, 1])
@pytest.mark.parametrize("form", ["skipgram", "cbow"])
def test_two_steps_equal_those_of_gensim(form, hs):
    model, out = theirs(form, hs)
    params = {"in": jnp.asarray(IN), "out": jnp.asarray(OUT[: len(out)])}
    tree_ = word2vec.huffman(np.asarray([5, 4, 2, 1]))
    for near, word in ((1, 0), (0, 1)):  # each word of "a b" is foretold by the other one
        ids = jnp.asarray([word])
        asked = (
            word2vec.along_tree(ids, tree_)
            if hs
            else word2vec.against_noise(ids, jnp.asarray([[2]]))
        )
        batch = Batch(jnp.asarray([[near]]), ids)
        params, _ = word2vec.update(params, batch, *asked, RATE)
    # gensim reads the logistic function from a table of 1000 values.
    np.testing.assert_allclose(params["in"], model.wv.vectors, atol=2e-3)
    np.testing.assert_allclose(params["out"], out, atol=2e-3)
    assert np.abs(IN - model.wv.vectors).max() > 0.05


def test_a_mean_of_words_gives_each_its_share_of_the_gradient():
    params = {"in": jnp.asarray(IN), "out": jnp.asarray(OUT)}
    batch = Batch(jnp.asarray([[1, 2, -1]]), jnp.asarray([0]))
    asked, labels = word2vec.against_noise(batch.word, jnp.asarray([[3, 0]]))
    after, value = word2vec.update(params, batch, asked, labels, RATE)
    hidden = (IN[1] + IN[2]) / 2
    miss = 1 / (1 + np.exp(-OUT[[0, 3]] @ hidden)) - [1, 0]
    wanted = IN.copy()
    wanted[[1, 2]] -= RATE * (miss @ OUT[[0, 3]]) / 2
    np.testing.assert_allclose(after["in"], wanted, atol=1e-6)
    scores = OUT[[0, 3]] @ hidden * [1, -1]
    assert float(value) == pytest.approx(np.log1p(np.exp(-scores)).sum(), rel=1e-5)
    np.testing.assert_array_equal(after["out"][1:3], OUT[1:3])  # 0 itself is no noise for 0


def test_paths_of_the_tree_are_as_long_as_those_of_gensim():
    counts = [50, 30, 21, 9, 8, 3, 2, 1]
    model = gensim.models.Word2Vec(hs=1, negative=0, min_count=1, sorted_vocab=1, vector_size=2)
    model.build_vocab([[f"w{i}"] * count for i, count in enumerate(counts)])
    points, turns = word2vec.huffman(np.asarray(counts))
    for i in range(len(counts)):
        code = model.wv.get_vecattr(f"w{i}", "code")
        assert (points[i] >= 0).sum() == (turns[i] >= 0).sum() == len(code)
    paths = {
        tuple(zip(p[p >= 0], t[t >= 0], strict=True)) for p, t in zip(points, turns, strict=True)
    }
    assert len(paths) == len(counts) and points.max() == len(counts) - 2


def themes(number):
    """Documents of one of two themes: words 0-4 keep together, and 5-9."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 5, 12) + 5 * (i % 2) for i in range(number)]
    return np.concatenate(rows), np.arange(0, 12 * number + 1, 12)


def apart(table):
    """The mean cosine within a theme less that between themes."""
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit.T
    within = (cosines[:5, :5].sum() + cosines[5:, 5:].sum() - 10) / 40
    return within - cosines[:5, 5:].mean()


@pytest.mark.parametrize(("form", "output"), [("skipgram", "negative"), ("cbow", "hierarchical")])
def test_words_of_one_theme_come_together(form, output):
    config = Word2Vec(
        vocab_size=10, width=8, window=3, form=form, output=output,
        negatives=3 if output == "negative" else None, sample=0.2,
    )  # fmt: skip
    tokens, offsets = themes(150)
    params, history = word2vec.train(config, tokens, offsets, passes=6, batch=16, rate=0.1, seed=0)
    assert history[-1] < history[0] and apart(np.asarray(params["in"])) > 0.5


def test_pairs_stay_within_window_and_document():
    config = Word2Vec(vocab_size=9, width=2, window=2, form="skipgram", output="hierarchical")
    ids, document = np.arange(9), np.asarray([0] * 4 + [1] * 5)
    seen = set()
    for seed in range(20):
        batch = word2vec.pairs(config, ids, document, slice(0, 9), np.random.default_rng(seed))
        seen |= set(zip(batch.near[:, 0].tolist(), batch.word.tolist(), strict=True))
    assert seen == {
        (a, b) for a in range(9) for b in range(9) if 0 < abs(a - b) < 3 and (a < 4) == (b < 4)
    }


def test_glove_counts_by_distance_and_finds_the_optimum():
    config = GloVe(vocab_size=10, width=4, window=2, most=10.0, power=0.75)
    pairs = glove.cooccurrences(config, np.asarray([0, 1, 0, 2]), np.asarray([0, 3, 4]))
    found = dict(
        zip(zip(pairs.word.tolist(), pairs.near.tolist(), strict=True), pairs.times, strict=True)
    )
    assert found == {(0, 1): 2.0, (1, 0): 2.0, (0, 0): 1.0}
    params = {"in": jnp.asarray([[1.0], [2.0]]), "near": jnp.asarray([[0.5], [1.0]]),
              "in_bias": jnp.asarray([0.1, 0.2]), "near_bias": jnp.asarray([0.3, 0.4])}  # fmt: skip
    one = glove.Pairs(np.asarray([0]), np.asarray([1]), np.asarray([5.0], np.float32))
    wanted = 0.5**0.75 * (1.0 + 0.1 + 0.4 - np.log(5)) ** 2
    assert float(glove.loss(params, config, one)) == pytest.approx(wanted, rel=1e-5)
    pairs = glove.cooccurrences(config, *themes(60))
    params, history = glove.train(config, pairs, passes=60, batch=25, rate=0.2, seed=0)
    assert history[-1] < 0.05 * history[0] and apart(glove.vectors(params)) > 0.5


def some_vectors():
    return Vectors(("king", "queen", "man", "woman", "é"), RNG.normal(size=(5, 3)).astype("f4"))


def test_files_neighbours_and_analogies_equal_those_of_gensim(tmp_path):
    ours = some_vectors()
    vectors.save(tmp_path / "ours.txt", ours)
    other = KeyedVectors.load_word2vec_format(str(tmp_path / "ours.txt"))
    np.testing.assert_array_equal(other.vectors, ours.table)
    other.save_word2vec_format(str(tmp_path / "theirs.txt"))
    again = vectors.load(tmp_path / "theirs.txt")
    assert again.words == ours.words == tuple(other.index_to_key)
    np.testing.assert_array_equal(again.table, ours.table)
    for found, wanted in (
        (vectors.neighbours(ours, "king", 4), other.most_similar("king", topn=4)),
        (
            vectors.analogy(ours, "man", "woman", "king", 2),
            other.most_similar(positive=["woman", "king"], negative=["man"], topn=2),
        ),
    ):
        assert [word for word, _ in found] == [word for word, _ in wanted]
        np.testing.assert_allclose([x for _, x in found], [x for _, x in wanted], atol=1e-6)
    vectors.save(tmp_path / "glove.txt", ours, header="none")
    assert vectors.load(tmp_path / "glove.txt").words == ours.words
    other = KeyedVectors.load_word2vec_format(str(tmp_path / "glove.txt"), no_header=True)
    np.testing.assert_array_equal(other.vectors, ours.table)


def test_a_model_begins_with_the_vectors_of_its_pieces():
    config = ModelConfig(vocab_size=6, context=4, layers=1, d_model=4, heads=2)
    table = 0.02 * jax.random.normal(jax.random.key(0), (6, 4))
    params = {**api.abstract(config), "embed": {"tokens": table}}
    found = Vectors(("cat", "dog"), RNG.normal(size=(2, 4)).astype(np.float32))
    pieces = ["<bos>", " dog", "x", "cat", "ca", "t"]
    changed, count = vectors.initial(params, found, pieces, spread="own")
    before, after = np.asarray(table), np.asarray(changed["embed"]["tokens"])
    assert count == 2
    np.testing.assert_array_equal(after[[1, 3]], found.table[[1, 0]])
    np.testing.assert_array_equal(after[[0, 2, 4, 5]], before[[0, 2, 4, 5]])
    scaled = np.asarray(vectors.initial(params, found, pieces)[0]["embed"]["tokens"])
    assert scaled[[1, 3]].std() == pytest.approx(before.std(), rel=1e-5)
    assert set(tree.flatten(changed)) == {*tree.flatten(params)}
    with pytest.raises(ConfigError, match="vectors of 3 numbers don't fit d_model=4"):
        vectors.initial(params, some_vectors(), pieces)
    with pytest.raises(ConfigError, match="none of 1 pieces"):
        vectors.initial(params, found, ["x"])


BAD = {
    "empty": (b"", "is empty"),
    "not utf-8": (b"a \xff", "byte offset 2"),
    "no number": (b"a 1 x\n", "x.txt:1: 'a 1 x' is no word"),
    "not finite": (b"1 1\na nan\n", "x.txt:2"),
    "other width": (b"a 1 2\nb 1\n", "x.txt:2: 1 numbers, but 2 before"),
    "truncated": (b"3 1\na 1\nb 2\n", "x.txt:1 says 3 words of 1 numbers, but there are 2 of 1"),
    "narrower than said": (b"1 2\na 1\n", "x.txt:1 says 1 words of 2 numbers"),
    "superscript": (
        "\u00b2\u00a0\u00b2\na 1\n".encode(),
        "x.txt:1: '\u00b2\\xa0\u00b2' is no",
    ),
    "an underscore": (b"a 1_0\n", "x.txt:1: 'a 1_0' is no word"),
    "digits of another script": ("a \u0661\n".encode(), "x.txt:1: 'a \u0661' is no word"),
    "too large": (b"a 1e40\n", "x.txt:1: 'a 1e40' is no word"),
    "twice": (b"a 1\na 2\n", "'a' occurs twice"),
}


@pytest.mark.parametrize(("raw", "part"), BAD.values(), ids=BAD)
def test_a_malformed_file_of_vectors_is_refused_with_its_line(tmp_path, raw, part):
    (tmp_path / "x.txt").write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        vectors.load(tmp_path / "x.txt")
    assert part in str(caught.value)


def test_bad_sizes_and_words_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="negatives=None with output=negative"):
        Word2Vec(vocab_size=4, width=2, window=1, form="cbow", output="negative")
    with pytest.raises(ConfigError, match="power=0"):
        GloVe(vocab_size=4, width=2, window=1, most=1.0, power=0.0)
    with pytest.raises(ConfigError, match=r"'kin' has no vector \(did you mean 'king'"):
        vectors.neighbours(some_vectors(), "kin", 1)
    with pytest.raises(DataError, match="holds white space"):
        vectors.save(tmp_path / "x", Vectors(("a b",), np.ones((1, 2), np.float32)))
    with pytest.raises(DataError, match="no pair"):
        glove.cooccurrences(
            GloVe(vocab_size=4, width=2, window=1, most=1.0, power=1.0),
            np.asarray([1]), np.asarray([0, 1]),
        )  # fmt: skip
    with pytest.raises(DataError, match="NaN or infinity"):
        vectors.save(tmp_path / "x", Vectors(("a",), np.full((1, 2), np.nan, np.float32)))
    same = Vectors(("a", "b"), np.ones((2, 2), np.float32))
    alike = Vectors(("a", "b", "zero"), np.asarray([[1, 0], [1, 0], [0, 0]], np.float32))
    with pytest.raises(ConfigError, match=r"'a' - 'b' \+ 'zero' is the vector of zeros"):
        vectors.analogy(alike, "b", "a", "zero", 1)
    params = {"embed": {"tokens": jnp.ones((2, 2))}}
    with pytest.raises(ConfigError, match="numbers of the vectors are the same"):
        vectors.initial(params, same, ["a", "b"])


def test_only_spaces_and_line_ends_part_the_words_of_a_file(tmp_path):
    odd = "\u00a0 \u3000 \u2028 \u2029 \u0085 \u200a \x1c \x1d \x1e \x1f".split(" ")
    words = (*odd, *(f"a{mark}b" for mark in odd))
    ours = Vectors(words, np.random.default_rng(0).normal(size=(len(words), 3)).astype(np.float32))
    for header in ("word2vec", "none"):
        vectors.save(tmp_path / "x.txt", ours, header=header)
        again = vectors.load(tmp_path / "x.txt")
        assert again.words == words
        np.testing.assert_array_equal(again.table, ours.table)
    pieces = [f" {word}" for word in words]
    table = {"embed": {"tokens": jnp.zeros((len(words), 3))}}
    assert vectors.initial(table, ours, pieces, spread="own")[1] == len(words)
    for mark in " \t\n\r\v\f":
        with pytest.raises(DataError, match="holds white space"):
            vectors.save(tmp_path / "y.txt", Vectors((f"a{mark}b",), np.ones((1, 2), np.float32)))


LEARNERS = {
    "ngram": lambda tokens, offsets: ngram.train(
        ngram.NGram(vocab_size=4, order=2), tokens, offsets
    ),
    "glove": lambda tokens, offsets: glove.cooccurrences(
        GloVe(vocab_size=4, width=2, window=1, most=1.0, power=1.0), tokens, offsets
    ),
    "word2vec": lambda tokens, offsets: word2vec.train(
        Word2Vec(vocab_size=4, width=2, window=1, form="cbow", output="hierarchical"),
        tokens, offsets, passes=1, batch=2, rate=0.1, seed=0,
    ),
    "maxent": lambda tokens, offsets: maxent.examples(
        maxent.MaxEnt(vocab_size=4, order=1, words=2), tokens, offsets, begin=None, classes=None
    ),
    "template": lambda tokens, offsets: template.frames(
        template.Template(vocab_size=4, fixed=1, support=1, longest=2, order=2),
        tokens, offsets, np.zeros(4, bool),
    ),
}  # fmt: skip
WRONG = {
    "negative": ([0, -1], [0, 2], "token id -1 is outside the vocabulary of 4"),
    "too large": ([0, 4], [0, 2], "token id 4 is outside"),
    "no tokens": ([], [0, 0], "no tokens"),
    "floats": ([0.5, 1.0], [0, 2], "dtype float64"),
    "rows": ([[0, 1]], [0, 1], r"shape \(1, 2\)"),
    "tokens left over": ([0, 1, 2], [0, 2], "must rise from 0 to the 3 tokens"),
    "beyond the tokens": ([0, 1], [0, 3], "must rise from 0 to the 2 tokens"),
    "not from 0": ([0, 1], [1, 2], "must rise from 0"),
    "falling": ([0, 1, 2], [0, 2, 1, 3], "must rise from 0"),
}


@pytest.mark.parametrize(("tokens", "offsets", "part"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("learn", LEARNERS.values(), ids=LEARNERS)
def test_documents_that_are_none_are_refused(learn, tokens, offsets, part):
    with pytest.raises(DataError, match=part):
        learn(np.asarray(tokens), np.asarray(offsets))


def test_a_pass_without_two_words_side_by_side_is_refused():
    with pytest.raises(DataError, match="pass 1 found no two words"):
        LEARNERS["word2vec"](np.asarray([0, 1, 2]), np.asarray([0, 1, 2, 3]))

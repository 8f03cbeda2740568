"""The n-gram against lmplz of KenLM 0.3.0 (golden ARPA files), and against itself on the device.

lmplz/order_N.arpa.gz is what `lmplz -o N --discount_fallback < text.txt` writes.
"""

import gzip
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.models.classic import arpa, ngram
from jaxgen.models.classic.ngram import NGram

HERE = Path(__file__).parent / "lmplz"
LINES = [line.split() for line in (HERE / "text.txt").read_text().splitlines()]
HELD = [["the", "people", "are", "quixotic"], ["unheard"], *LINES[5:20]]
NAMES = ["<unk>", "</s>", *sorted({word for line in LINES for word in line})]


def encoded(lines, names):
    ids = {name: i for i, name in enumerate(names)}
    rows = [[*(ids.get(w, ids["<unk>"]) for w in line), ids["</s>"]] for line in lines]
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


@pytest.fixture(scope="module")
def trigram():
    config = NGram(vocab_size=len(NAMES), order=3)
    return config, ngram.train(config, *encoded(LINES, NAMES))


@pytest.mark.parametrize("order", [1, 3])
def test_probabilities_equal_those_of_lmplz(tmp_path, order):
    golden = tmp_path / "golden.arpa"
    golden.write_bytes(gzip.decompress((HERE / f"order_{order}.arpa.gz").read_bytes()))
    theirs, their_params, their_names = arpa.read(golden)
    config = NGram(vocab_size=len(NAMES), order=order)
    params = ngram.train(config, *encoded(LINES, NAMES))
    assert {n: len(x["logp"]) for n, x in params.items()} == {
        n: len(x["logp"]) for n, x in their_params.items()
    }
    for lines in (LINES, HELD):
        ours = ngram.score(params, config, *encoded(lines, NAMES))
        other = ngram.score(their_params, theirs, *encoded(lines, their_names))
        np.testing.assert_allclose(ours, other, atol=5e-6)
        assert abs(np.exp(-ours.mean()) - np.exp(-other.mean())) < 1e-3


def test_an_arpa_file_round_trips(tmp_path, trigram):
    config, params = trigram
    arpa.write(tmp_path / "x.arpa", params, config, NAMES)
    again, kept, names = arpa.read(tmp_path / "x.arpa")
    assert (again, names) == (config, NAMES)
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_allclose(tree.flatten(kept)[path], leaf, atol=2e-6, rtol=2e-6)


def test_the_device_step_equals_scoring_on_the_host(trigram):
    config, params = trigram
    tokens, offsets = encoded(HELD[:4], NAMES)
    wanted = ngram.score(params, config, tokens, offsets)
    step = jax.jit(lambda params, tokens, cache: ngram.step(params, config)(tokens, cache))
    device = ngram.on_device(params)
    for begin, end in pairwise(offsets):
        cache = ngram.start(config, 1)
        for place in range(begin, end - 1):
            logits, cache = step(device, jnp.asarray(tokens[place : place + 1]), cache)
            assert abs(float(jnp.exp(logits).sum()) - 1) < 1e-4
            assert abs(float(logits[0, tokens[place + 1]]) - wanted[place + 1]) < 1e-5


def test_it_decodes_through_the_same_loop_as_a_transformer(trigram):
    config, params = trigram
    line = encoded([LINES[1][:2]], NAMES)[0][None, :2]
    prompt = jnp.concatenate([line, jnp.zeros_like(line)], axis=1)
    first, cache = ngram.prefill(params, config, prompt, jnp.asarray([2]))
    step = ngram.step(params, config)
    out, _ = jaxgen.decode(step, cache, first, jax.random.key(0), jaxgen.greedy(), 3)
    assert [NAMES[i] for i in out[0]] == LINES[1][2:5]


def test_a_begin_of_the_vocabulary_equals_one_beside_it():
    documents = [[3, 1, 2], [3, 1, 1, 2, 2]]
    offsets = np.asarray([0, 3, 8])
    inside = NGram(vocab_size=5, order=3, begin=0)
    outside = NGram(vocab_size=5, order=3)
    plain = np.concatenate(documents)
    marked, moved = np.concatenate([[0, *d] for d in documents]), np.asarray([0, 4, 10])
    a = ngram.score(ngram.train(inside, marked, moved), inside, marked, moved)
    b = ngram.score(ngram.train(outside, plain, offsets), outside, plain, offsets)
    # One id more can follow there: 0, which no document holds.
    assert a[0] == a[4] == 0 and (np.delete(a, [0, 4]) >= b).all()
    np.testing.assert_allclose(np.delete(a, [0, 4]), b, atol=0.1)


ARPA = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99\t<s>\t-0.2
-0.5\ta\t-0.3
-0.6\tb
-0.7\t</s>

\\2-grams:
-0.1\t<s> a
-0.2\ta b

\\end\\
"""
# How a sound file is made unsound: (old, new, what the message must hold).
BAD = {
    "no data": ("\\data\\\n", "", "x.arpa:1: there is no \\data\\"),
    "no end": ("\\end\\", "", "x.arpa:15: the file ends without \\end\\"),
    "no section": (
        "\\2-grams:\n-0.1\t<s> a\n-0.2\ta b\n",
        "",
        ":12: \\end\\ comes before \\2-grams",
    ),
    "no counts": ("ngram 1=4\nngram 2=2\n", "", ":3: '\\\\1-grams:' is out of order"),
    "no first section": ("\\1-grams:", "\\2-grams:", ":5: '\\\\2-grams:' is out of order"),
    "a section more": ("\\end\\", "\\3-grams:\n\\end\\", ":15: '\\\\3-grams:' is out of order"),
    "fewer than counted": ("ngram 2=2", "ngram 2=3", ":11: \\2-grams: holds 2 n-grams, but line 3"),
    "more than counted": ("ngram 1=4", "ngram 1=3", ":5: \\1-grams: holds 4 n-grams, but line 2"),
    "count of another order": ("ngram 2=2", "ngram 3=2", ":3: 'ngram 3=2' should be"),
    "count with an underscore": ("ngram 2=2", "ngram 2=0_2", ":3: 'ngram 2=0_2' should be"),
    "words as a count": ("ngram 2=2", "ngram 2=two", ":3: 'ngram 2=two' should be"),
    "no number": ("-0.5\ta", "x\ta", ":7: 'x\\ta\\t-0.3' is no 1-gram"),
    "not a number": ("-0.5\ta", "nan\ta", "is no 1-gram"),
    "digits of another script": ("-0.5\ta", "-\u0661\ta", "is no 1-gram"),
    "number with an underscore": ("-0.5\ta", "-0_5\ta", "is no 1-gram"),
    "too few words": ("<s> a", "<s>", ":12: '-0.1\\t<s>' is no 2-gram"),
    "too many words": ("<s> a", "<s> a b c", ":12: '-0.1\\t<s> a b c' is no 2-gram"),
    "probability above 1": ("-0.5\ta", "0.5\ta", ":7: 0.5 is the log of a probability above 1"),
    "no back-off of a context": ("a\t-0.3", "a", ":7: 'a' has no back-off weight, but is the"),
    "back-off of the last order": ("a b", "a b\t-1", ":13: an n-gram of the highest order has a"),
    "a unigram twice": ("-0.6\tb", "-0.6\ta", ":8: 'a' is there twice, first in 7"),
    "a bigram twice": ("a b", "<s> a", ":13: '<s> a' is there twice, first in 12"),
    "unknown word": ("<s> a", "<s> c", ":12: 'c' is no unigram"),
    "no begin": ("<s>", "s", ":6: there is no unigram <s>"),
    "not utf-8": ("\ta\t", "\ud8ff\t", "byte offset"),
}


def arpa_file(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize(("old", "new", "part"), BAD.values(), ids=BAD)
def test_a_malformed_arpa_file_is_refused_with_its_line(tmp_path, old, new, part):
    assert old in ARPA
    text = ARPA.replace(old, new) if old == "<s>" else ARPA.replace(old, new, 1)
    with pytest.raises(CheckpointError) as caught:
        arpa.read(arpa_file(tmp_path / "x.arpa", text))
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    lambda text: text,
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\t", "  "),
    lambda text: "made by hand\n\n" + text.replace("=", " = "),
    lambda text: text.replace("-99", "-inf"),
])  # fmt: skip
def test_an_arpa_file_is_read_however_it_is_spaced(tmp_path, change):
    config, params, words = arpa.read(arpa_file(tmp_path / "x.arpa", change(ARPA)))
    assert (config.order, words) == (2, ["a", "b", "</s>"])
    logp = ngram.score(params, config, np.asarray([0, 1, 2]), np.asarray([0, 3]))
    # b has no back-off weight, as nothing goes on from it: 1.
    np.testing.assert_allclose(logp / np.log(10), [-0.1, -0.2, -0.7], atol=1e-6)
    assert params["1"]["logp"][3] == -np.inf


ODD = "\u00a0 \u3000 \u2028 \u2029 \u0085 \u1680 \u200a \u205f \x1c \x1d \x1e \x1f".split(" ")


def test_only_spaces_tabs_and_line_ends_part_the_words_of_an_arpa_file(tmp_path):
    names = [f"a{mark}b" for mark in ODD] + ODD
    config = NGram(vocab_size=len(names), order=2)
    tokens = np.random.default_rng(0).integers(0, len(names), 200)
    params = ngram.train(config, tokens, np.asarray([0, 100, 200]))
    arpa.write(tmp_path / "x.arpa", params, config, names)
    again, kept, words = arpa.read(tmp_path / "x.arpa")
    assert (again, words) == (config, names)
    np.testing.assert_allclose(kept["2"]["logp"], params["2"]["logp"], atol=2e-6)
    for mark in " \t\n\r\v\f":
        with pytest.raises(DataError, match="holds white space"):
            arpa.write(tmp_path / "y.arpa", params, config, [f"a{mark}b", *names[1:]])
    params["1"]["backoff"][0] = np.nan
    with pytest.raises(DataError, match="1-grams hold NaN"):
        arpa.write(tmp_path / "y.arpa", params, config, names)


def test_orders_of_which_no_n_gram_was_seen_back_off(tmp_path):
    config, tokens, offsets = (
        NGram(vocab_size=3, order=4),
        np.asarray([0, 1]),
        np.asarray([0, 1, 2]),
    )
    params = ngram.train(config, tokens, offsets)
    assert not len(params["3"]["words"])
    short = NGram(vocab_size=3, order=2)
    wanted = ngram.score(ngram.train(short, tokens, offsets), short, tokens, offsets)
    np.testing.assert_allclose(ngram.score(params, config, tokens, offsets), wanted, atol=1e-6)
    arpa.write(tmp_path / "x.arpa", params, config, list("abc"))
    again, kept, _ = arpa.read(tmp_path / "x.arpa")
    np.testing.assert_allclose(ngram.score(kept, again, tokens, offsets), wanted, atol=1e-6)


def test_bad_text_is_refused():
    with pytest.raises(ConfigError, match="order=0"):
        NGram(vocab_size=4, order=0)
    config = NGram(vocab_size=4, order=2, begin=0)
    for tokens, offsets, part in (
        ([], [0], "no tokens"), ([0, 9], [0, 2], "token id 9"), ([1], [0, 1], "does not begin")
    ):  # fmt: skip
        with pytest.raises(DataError, match=part):
            ngram.train(config, np.asarray(tokens, int), np.asarray(offsets))

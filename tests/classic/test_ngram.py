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


BAD = {
    "no end": (b"\\data\\\n\\1-grams:\n-1 a 0\n", "lacks its"),
    "no number": (b"\\1-grams:\nx a 0\n\\end\\\n", "x.arpa:2: 'x a 0' is no 1-gram"),
    "unknown word": (
        b"\\1-grams:\n-1 <s> 0\n-1 b 0\n\\2-grams:\n-1 a <s>\n\\end\\\n",
        ":5: 'a' is no",
    ),
    "no unigrams": (b"\\end\\\n", "has no words"),
    "not utf-8": (b"\xff", "byte offset 0"),
}


@pytest.mark.parametrize(("raw", "part"), BAD.values(), ids=BAD)
def test_a_malformed_arpa_file_is_refused_with_its_line(tmp_path, raw, part):
    (tmp_path / "x.arpa").write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        arpa.read(tmp_path / "x.arpa")
    assert part in str(caught.value)


def test_bad_text_is_refused():
    with pytest.raises(ConfigError, match="order=0"):
        NGram(vocab_size=4, order=0)
    config = NGram(vocab_size=4, order=2, begin=0)
    for tokens, offsets, part in (
        ([], [0], "no tokens"), ([0, 9], [0, 2], "token id 9"), ([1], [0, 1], "does not begin")
    ):  # fmt: skip
        with pytest.raises(DataError, match=part):
            ngram.train(config, np.asarray(tokens, int), np.asarray(offsets))

"""Templates: the frames a corpus was made of are found, and every text has its probability."""

from collections import Counter
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic import grammar, template
from jaxgen.models.classic.template import Template

NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve"]
WORDS = ["<bos>", ".", "the", "of", "is", "here", *NAMES, *(f"w{i}" for i in range(8))]
IDS = {word: i for i, word in enumerate(WORDS)}
CONFIG = Template(vocab_size=len(WORDS), fixed=5, support=4, longest=8, order=2, begin=0)
ENDS = np.asarray([word == "." for word in WORDS])


def corpus():
    rng, rows = np.random.default_rng(0), []
    for _ in range(30):
        a, b = rng.choice(NAMES, 2)
        rows.append(f"the {a} of {b} {a} is here ." if rng.random() < 0.6 else f"{a} is {b} .")
    rows.append("w1 of of w2 .")
    ids = [[0, *(IDS[word] for word in f"{a} {b}".split())] for a, b in pairwise(rows)]
    return np.concatenate(ids), np.cumsum([0, *map(len, ids)]), rows


@pytest.fixture(scope="module")
def trained():
    tokens, offsets, _ = corpus()
    params = jax.tree.map(jnp.asarray, template.train(CONFIG, tokens, offsets, ENDS))
    run = jax.jit(lambda params, token, cache: template.step(params, CONFIG)(token, cache))
    return params, lambda token, cache: run(params, token, cache)


def words(ids):
    return " ".join(WORDS[i] for i in ids)


def test_the_frames_are_those_the_corpus_was_made_of():
    tokens, offsets, _ = corpus()
    found = template.frames(CONFIG, tokens, offsets, ENDS)
    shapes = {" ".join("_" if i is None else WORDS[i] for i in f.parts): f for f in found}
    assert set(shapes) == {"the _ of _ is here .", "_ is _ ."}  # w1 of of w2 is too rare
    frame = shapes["the _ of _ is here ."]
    assert all(len(filler) == 1 for filler in frame.fillers[0])
    assert all(len(filler) == 2 for filler in frame.fillers[1])
    assert frame.num_sentences == frame.fillers[0].total() == frame.fillers[1].total()


def test_frames_are_a_grammar_that_says_only_such_sentences():
    tokens, offsets, _ = corpus()
    text, slots = template.as_grammar(template.frames(CONFIG, tokens, offsets, ENDS), words)
    parsed, rng = grammar.parse(text), np.random.default_rng(0)
    made = Counter(grammar.sample(parsed, rng, slots).count("here") for _ in range(200))
    assert 0.4 < made[1] / 200 < 0.8 and set(made) == {0, 1}


def test_the_next_word_has_the_shares_worked_by_hand(trained):
    params, step = trained
    _, cache = template.prefill(params, CONFIG, jnp.asarray([[0, 0]]), jnp.asarray([1]))
    logits, cache = step(jnp.asarray([0]), cache)
    rows = corpus()[2]
    firsts = Counter(row.split()[0] for a in pairwise(rows) for row in a)
    total, once = sum(firsts.values()), np.asarray(params["backoff"])[0]
    discount = once * total / len(firsts)
    lower = np.exp(template.ngram.following(params["ngram"], CONFIG.ngram(), cache.nodes)[0])
    for word, count in firsts.items():
        wanted = (count - discount) / total + once * lower[IDS[word]]
        assert float(jnp.exp(logits[0, IDS[word]])) == pytest.approx(wanted, rel=1e-4)


def test_probabilities_sum_to_one_in_and_outside_the_frames(trained):
    _, step = trained
    cache, seen = template.start(CONFIG, 1), set()
    for word in "<bos> the Ann of Bob Cid is here . Ann w7 is w3 . of of w5 . the".split():
        logits, cache = step(jnp.asarray([IDS[word]]), cache)
        assert float(jnp.exp(logits).sum()) == pytest.approx(1, abs=1e-5)
        assert np.isfinite(np.asarray(logits)[0, 1:]).all() and np.isneginf(logits[0, 0])
        seen.add(int(cache.node[0]))
    assert -1 in seen and 0 in seen and len(seen) > 6


def test_a_frame_foretells_its_words_better_than_its_n_gram(trained):
    params, step = trained
    prompt = jnp.asarray([[IDS[w] for w in "<bos> the Ann of Bob Cid".split()]])
    first, cache = template.prefill(params, CONFIG, prompt, jnp.asarray([6]))
    logits, cache = step(first, cache)
    lower = template.ngram.following(params["ngram"], CONFIG.ngram(), cache.nodes)
    assert float(logits[0, IDS["is"]]) > float(lower[0, IDS["is"]]) + 0.1
    run = template.step(params, CONFIG)
    out, _ = jaxgen.decode(run, cache, jnp.asarray([IDS["is"]]), jax.random.key(0),
                           jaxgen.greedy(), 2)  # fmt: skip
    assert words(out[0].tolist()) == "here ."


def test_bad_sizes_and_texts_are_refused():
    with pytest.raises(ConfigError, match="support=0"):
        Template(vocab_size=4, fixed=2, support=0, longest=3, order=2)
    with pytest.raises(ConfigError, match="ends has shape"):
        template.frames(CONFIG, np.asarray([0, 1]), np.asarray([0, 2]), ENDS[:3])
    with pytest.raises(DataError, match="no tokens"):
        template.train(CONFIG, np.asarray([], int), np.asarray([0]), ENDS)

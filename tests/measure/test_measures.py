"""Measures against sacrebleu, rouge-score, scipy and cases worked by hand."""

import math

import numpy as np
import pytest
from nltk.translate.meteor_score import meteor_score
from rouge_score import rouge_scorer
from sacrebleu import metrics
from scipy import stats

from jaxgen.errors import ConfigError, DataError
from jaxgen.measure import bootstrap, diversity, mauve, quality, speed, stability
from jaxgen.measure.bootstrap import NOTHING

TEXTS = ["the cat sat on the mat", "a dog barks at night", "it rains", "no word in common"]
REFERENCES = ["the cat sat on a mat", "the dog barked at night", "it rains", "different text here"]


def test_bootstrap_intervals_equal_those_of_scipy():
    values = np.random.default_rng(1).gamma(2, size=40)
    ours = bootstrap.mean(values, seed=3)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    np.testing.assert_allclose(ours, (values.mean(), theirs.low, theirs.high), rtol=1e-12)


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_overlaps_equal_sacrebleu(metric):
    found, signature = quality.overlap(metric, TEXTS, REFERENCES, seed=0)
    scorer = {"bleu": metrics.BLEU, "chrf": metrics.CHRF, "ter": metrics.TER}[metric]()
    assert found.value == scorer.corpus_score(TEXTS, [REFERENCES]).score
    assert signature == str(scorer.get_signature())
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_equals_rouge_score(kind):
    scorer = rouge_scorer.RougeScorer([kind])
    pairs = zip(REFERENCES, TEXTS, strict=True)
    wanted = np.mean([scorer.score(a, b)[kind].fmeasure for a, b in pairs])
    assert quality.rouge(kind, TEXTS, REFERENCES, seed=0).value == wanted


class NoSynonyms:
    """What nltk asks WordNet, without a download."""

    @staticmethod
    def synsets(word):
        return []


def test_meteor_equals_nltk_without_synonyms():
    texts = [*TEXTS, "the the dogs barking loud , cats run", "runs running the ran The"]
    references = [*REFERENCES, "the dog barks louder the cat runs", "the runner ran the run"]
    wanted = [
        meteor_score([b.split()], a.split(), wordnet=NoSynonyms)
        for a, b in zip(texts, references, strict=True)
    ]
    found = quality.meteor(texts, references, seed=0)
    assert found.value == pytest.approx(np.mean(wanted), abs=1e-12) and found.value > 0.3
    assert found.low < found.value < found.high


def test_answers_are_compared_as_squad_does():
    texts, references = ["The Cat!", "a big dog", "x"], ["cat", "big cat", "y"]
    assert quality.exact_match(texts, references, seed=0).value == pytest.approx(1 / 3)
    assert quality.f1(texts, references, seed=0).value == pytest.approx((1 + 0.5 + 0) / 3)


def test_bits_per_byte_and_perplexity_by_hand():
    logp, sizes = np.log([1 / 4, 1 / 16]), np.asarray([1, 2])
    assert quality.bits_per_byte(logp, sizes, seed=0).value == pytest.approx((2 + 4) / 3)
    assert quality.perplexity(logp, np.ones(2), seed=0).value == pytest.approx(8)


def test_similarity_is_the_cosine():
    table = {"a": [1.0, 0.0], "b": [1.0, 1.0], "zero": [0.0, 0.0]}
    found = quality.similarity(
        lambda x: np.asarray([table[t] for t in x]), ["a", "zero"], ["b", "b"], seed=0
    )
    assert found.value == pytest.approx(math.sqrt(0.5) / 2)


def test_diversity_by_hand():
    texts = [list("aab"), list("abc")]
    assert diversity.distinct(texts, 1, seed=0).value == 5 / 6
    assert diversity.distinct(texts, 2, seed=0).value == 1
    assert diversity.entropy([list("aabb")], 1, seed=0).value == 1
    assert diversity.coverage(texts, set("abcd"), seed=0).value == 0.75
    ranks = [[r] * (840 // r) for r in range(1, 9) if 840 % r == 0]
    assert diversity.zipf(ranks[:6], seed=0).value == pytest.approx(1)
    training = np.asarray([1, 2, 3, 4, 5, 6])
    assert diversity.copied_share([[2, 3, 4, 9], [6, 5]], training, 2, seed=0).value == 2 / 4


def test_self_bleu_is_100_for_copies_and_undefined_for_one_text():
    assert diversity.self_bleu(["the same five words here"] * 3, seed=0).value == pytest.approx(100)
    assert diversity.self_bleu(["alone"], seed=0) == NOTHING


def test_repetition_by_hand():
    texts = [list("abab"), list("abcd")]
    assert stability.rep(texts, 2, seed=0).value == 2 / 8
    assert stability.seq_rep(texts, 2, seed=0).value == pytest.approx((1 / 3 + 0) / 2)
    assert stability.loops([list("xabcabcabc"), list("abcabcabd")], seed=0).value == 0.5
    two = np.asarray([[1.0, 1.0], [3.0, 3.0]])
    assert stability.spread(two, np.ones((2, 2)), seed=0).value == pytest.approx(math.sqrt(2))
    assert stability.spread(two[:1], np.ones((1, 2)), seed=0) == NOTHING
    assert stability.spread(two, np.zeros((2, 2)), seed=0) == NOTHING


def test_calibration_error_by_hand():
    confidence, correct = np.asarray([0.95, 0.95, 0.55]), np.asarray([1, 0, 1])
    wanted = (abs(1 - 1.9) + 0.45) / 3
    assert stability.calibration_error(confidence, correct, seed=0).value == pytest.approx(wanted)


def test_figures_of_all_texts_have_the_interval_of_their_texts():
    rng = np.random.default_rng(0)
    few, many = (rng.integers(0, 30, (n, 20)).tolist() for n in (10, 160))
    measures = [
        lambda x: diversity.entropy(x, 1, seed=0),
        lambda x: diversity.zipf(x, seed=0),
        lambda x: diversity.coverage(x[:5], set(range(60)), seed=0),
    ]
    for measure in measures:
        small, large = measure(few), measure(many)
        assert small.low < small.value < small.high
        assert large.high - large.low <= small.high - small.low
    above = rng.random((3, 40))
    value, low, high = stability.spread(above, np.ones((3, 40)), seed=0)
    # 40 uniform numbers have a mean of standard deviation sqrt(1 / 12 / 40) = 0.046.
    assert 0 <= low < value < high < 0.2


BAD = {
    "no hypotheses": ([], [], "no hypotheses"),
    "unequal": (["a", "b"], ["a"], "2 hypotheses but 1 references"),
    "reference of spaces": (["a", "b"], ["a", "  "], "reference 2 is empty"),
}


@pytest.mark.parametrize(("texts", "references", "part"), BAD.values(), ids=BAD)
def test_bad_pairs_are_refused(texts, references, part):
    for measure in (quality.f1, quality.exact_match, quality.meteor):
        with pytest.raises(DataError, match=part):
            measure(texts, references, seed=0)
    for metric in ("bleu", "chrf", "ter"):
        with pytest.raises(DataError, match=part):
            quality.overlap(metric, texts, references, seed=0)


def test_empty_texts_give_values_or_none_never_nan():
    empty = [[], []]
    found = [
        *diversity.distinct(empty, 2, seed=0), *diversity.entropy(empty, 1, seed=0),
        *diversity.zipf(empty, seed=0), *diversity.coverage(empty, {1}, seed=0),
        *diversity.copied_share(empty, np.arange(9), 2, seed=0), *stability.rep(empty, 4, seed=0),
        *stability.seq_rep(empty, 4, seed=0), *stability.loops(empty, seed=0),
        *diversity.self_bleu(["", " "], seed=0),
    ]  # fmt: skip
    assert all(value is None or math.isfinite(value) for value in found)


BESIDE = {
    **{
        name: lambda texts, refs, name=name: quality.overlap(name, texts, refs, seed=0)[0]
        for name in ("bleu", "chrf", "ter")
    },
    **{
        name: lambda texts, references, name=name: quality.rouge(name, texts, references, seed=0)
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
    },
    "meteor": lambda texts, references: quality.meteor(texts, references, seed=0),
    "exact match": lambda texts, references: quality.exact_match(texts, references, seed=0),
    "f1": lambda texts, references: quality.f1(texts, references, seed=0),
    "similarity": lambda texts, references: quality.similarity(
        lambda some: np.asarray([[len(text), 1.0] for text in some]), texts, references, seed=0
    ),
}


@pytest.mark.parametrize("measure", BESIDE.values(), ids=BESIDE)
def test_texts_and_references_that_are_no_pairs_are_refused(measure):
    for texts, references, part in (
        ([], [], "no hypotheses"),
        (["a"], [], "1 hypotheses but 0 references"),
        ([], ["a"], "no hypotheses"),
        (["a", "b"], ["a"], "2 hypotheses but 1 references"),
        (["a", "b"], ["a", " \u3000"], "reference 2 is empty"),
    ):
        with pytest.raises(DataError, match=part):
            measure(texts, references)


@pytest.mark.parametrize("name", BESIDE)
def test_empty_texts_and_a_single_one_have_their_value(name):
    worst = {"ter": 100.0, "similarity": 1 / math.sqrt(5 * 5 + 1)}.get(name, 0.0)
    alone = BESIDE[name]([""], ["words"])
    assert alone == (pytest.approx(worst), None, None)
    two = BESIDE[name](["", ""], ["words", "words"])
    assert two == pytest.approx((worst,) * 3)


def test_rouge_is_undefined_where_its_tokenizer_sees_no_word():
    assert quality.rouge("rouge1", ["\u65e5\u672c"], ["\u65e5\u672c"], seed=0) == NOTHING
    assert quality.rouge("rouge1", ["a", "b"], ["a", "..."], seed=0) == NOTHING

    class Characters:
        tokenize = staticmethod(list)

    found = quality.rouge(
        "rouge1", ["\u65e5\u672c"], ["\u65e5\u672c"], seed=0, tokenizer=Characters()
    )
    assert found.value == 1


OF_TEXTS = {
    "distinct": lambda texts: diversity.distinct(texts, 2, seed=0),
    "entropy": lambda texts: diversity.entropy(texts, 2, seed=0),
    "zipf": lambda texts: diversity.zipf(texts, seed=0),
    "copied": lambda texts: diversity.copied_share(texts, np.asarray([1, 2, 3]), 2, seed=0),
    "rep": lambda texts: stability.rep(texts, 2, seed=0),
    "seq_rep": lambda texts: stability.seq_rep(texts, 2, seed=0),
    "coverage": lambda texts: diversity.coverage(texts, {1, 2}, seed=0),
    "length": lambda texts: diversity.length(texts, seed=0),
    "loops": lambda texts: stability.loops(texts, seed=0),
}


@pytest.mark.parametrize("name", OF_TEXTS)
@pytest.mark.parametrize("texts", [[], [[]], [[], []], [[1]], [[1], []], [[1, 2], []]])
def test_measures_of_little_are_undefined_or_right_and_never_nan(name, texts):
    found = OF_TEXTS[name](texts)
    assert all(one is None or np.isfinite(one) for one in found)
    tokens = [token for text in texts for token in text]
    if name in ("coverage", "length", "loops"):
        wanted = {
            "coverage": len(set(tokens)) / 2, "length": len(tokens) / max(len(texts), 1), "loops": 0
        }[name]  # fmt: skip
        assert found.value == (wanted if texts else None)
    elif len(tokens) < (1 if name == "rep" else 2):
        assert found == NOTHING


def test_settings_and_numbers_without_a_meaning_are_refused():
    nan, one = np.asarray([1.0, np.nan]), np.asarray([1.0])
    for call, part in (
        (lambda: diversity.distinct([[1, 2]], 0, seed=0), "n=0"),
        (lambda: diversity.entropy([[1, 2]], -1, seed=0), "n=-1"),
        (lambda: diversity.copied_share([[1, 2]], np.asarray([1, 2]), 0, seed=0), "n=0"),
        (lambda: stability.rep([[1, 1]], 0, seed=0), "window=0"),
        (lambda: speed.seconds(lambda: None, 0), "repeats=0"),
        (lambda: mauve.mauve(np.eye(4), np.eye(4), seed=0, clusters=0), "clusters=0"),
        (lambda: mauve.mauve(np.eye(4), np.eye(4), seed=0, clusters=9), "clusters=9"),
        (lambda: mauve.mauve(np.eye(4), np.eye(4), seed=0, kept=0.0), "kept=0.0"),
    ):
        with pytest.raises(ConfigError, match=part):
            call()
    for call, part in (
        (lambda: bootstrap.mean(nan, seed=0), r"NaN at \(1,\)"),
        (lambda: bootstrap.ratio(nan, np.ones(2), seed=0), "NaN"),
        (lambda: bootstrap.ratio(one, np.ones(2), seed=0), "don't belong together"),
        (lambda: quality.bits_per_byte(nan, np.ones(2), seed=0), "NaN"),
        (lambda: quality.perplexity(np.zeros(3), np.ones(2), seed=0), "don't belong together"),
        (lambda: stability.spread(np.ones((2, 3)), np.ones((2, 2)), seed=0), "don't belong"),
        (lambda: stability.calibration_error(np.asarray([2.0]), one, seed=0), "confidence 2"),
        (lambda: stability.calibration_error(np.asarray([0.5, 0.1]), one, seed=0), "belong"),
        (lambda: stability.variation(np.ones((2, 3)), np.ones((1, 3)), seed=0), "belong"),
        (lambda: stability.changed_share(np.asarray([1, 2]), np.asarray([1])), "can't be compared"),
        (lambda: stability.changed_share(np.asarray([]), np.asarray([])), "can't be compared"),
        (lambda: diversity.copied_share([[-1, 2]], np.asarray([1, 2]), 2, seed=0), "negative"),
        (lambda: quality.similarity(lambda x: np.full((1, 2), np.nan), ["a"], ["b"], seed=0),
         "not finite"),
        (lambda: quality.similarity(lambda x: np.ones((2, 2)), ["a"], ["b"], seed=0), "1 texts"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=part):
            call()


def test_figures_beyond_a_float_are_undefined():
    assert quality.perplexity(np.asarray([-np.inf, -1.0]), np.ones(2), seed=0) == NOTHING
    assert quality.perplexity(np.asarray([-1e6, -1e6]), np.ones(2), seed=0) == NOTHING
    assert quality.perplexity(np.asarray([-700.0]), np.ones(1), seed=0).value == math.exp(700)


def test_an_interval_of_one_is_its_value_and_of_equals_has_no_width():
    assert bootstrap.mean([2.0], seed=0) == (2.0, None, None)
    assert bootstrap.mean([2.0] * 3, seed=0) == (2.0, 2.0, 2.0)
    assert bootstrap.mean([], seed=0) == bootstrap.mean([np.inf, 1.0], seed=0) == NOTHING

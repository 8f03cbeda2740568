"""Diversity and novelty of texts, which are sequences of tokens or words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from jaxgen.errors import ConfigError, DataError, MissingPackageError
from jaxgen.measure.bootstrap import NOTHING, Estimate, count_statistic, interval, mean, ratio
from jaxgen.measure.quality import EXTRA

Tokens = Sequence[Hashable]


def ngrams(text: Tokens, n: int) -> list[tuple]:
    """Return the n-grams of a text, in order; none if it is shorter. ConfigError unless n >= 1."""
    if n < 1:
        raise ConfigError(f"n={n} must be at least 1, as n-grams have so many tokens")
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def distinct(texts: Sequence[Tokens], n: int, *, seed: int) -> Estimate:
    """Return distinct-n (Li et al. 2016): different n-grams of a text by all of them.

    Counted text by text, then summed, so that the interval is honest and the number of texts
    does not matter.
    """
    return ratio(*distinct_counts(texts, n), seed=seed)


def distinct_counts(texts: Sequence[Tokens], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ([N] different n-grams, [N] n-grams) of each text."""
    grams = [ngrams(text, n) for text in texts]
    different = np.asarray([len(set(x)) for x in grams], float)
    return different, np.asarray([len(x) for x in grams], float)


def self_bleu(texts: Sequence[str], *, seed: int, most: int = 64) -> Estimate:
    """Return self-BLEU (Zhu et al. 2018), 0 to 100: each text's BLEU with the others as references.

    The first `most` texts; NOTHING for fewer than two. ConfigError without sacrebleu.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise MissingPackageError(f"self-BLEU needs sacrebleu: {EXTRA}") from None
    texts = [text for text in texts if text.strip()][:most]
    if len(texts) < 2:
        return NOTHING
    scorer = BLEU(effective_order=True)
    scores = [
        scorer.sentence_score(text, texts[:i] + texts[i + 1 :]).score
        for i, text in enumerate(texts)
    ]
    return mean(scores, seed=seed)


def count_ngrams(texts: Sequence[Tokens], n: int) -> tuple[np.ndarray, list[tuple]]:
    """Return (counts [texts, kinds], kinds): how often each n-gram occurs in each text."""
    counters = [Counter(ngrams(text, n)) for text in texts]
    kinds = {gram: i for i, gram in enumerate(dict.fromkeys(g for one in counters for g in one))}
    counts = np.zeros((len(texts), len(kinds)))
    for row, one in zip(counts, counters, strict=True):
        for gram, count in one.items():
            row[kinds[gram]] = count
    return counts, list(kinds)


def entropy(texts: Sequence[Tokens], n: int, *, seed: int) -> Estimate:
    """Return the entropy in bits of the n-grams of all texts; NOTHING if there are none."""

    def bits(counts: np.ndarray) -> float:
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log2(p)).sum()) + 0.0

    return count_statistic(bits, count_ngrams(texts, n)[0], seed=seed)


def zipf(texts: Sequence[Tokens], *, seed: int, most: int = 5000) -> Estimate:
    """Return minus the slope of log frequency on log rank (Holtzman et al. 2020), about 1 in prose.

    The `most` frequent tokens; NOTHING for fewer than two different ones.
    """

    def slope(counts: np.ndarray) -> float:
        frequencies = np.sort(counts[counts > 0])[::-1][:most]
        if len(frequencies) < 2:
            return np.nan
        x, y = np.log(np.arange(1, len(frequencies) + 1)), np.log(frequencies)
        x = x - x.mean()
        return float(-(x * y).sum() / (x * x).sum()) + 0.0

    return count_statistic(slope, count_ngrams(texts, 1)[0], seed=seed)


def coverage(texts: Sequence[Tokens], vocabulary: set, *, seed: int) -> Estimate:
    """Return the share of a vocabulary that texts use; NOTHING without texts or vocabulary."""
    if not vocabulary or not texts:
        return NOTHING
    counts, kinds = count_ngrams(texts, 1)
    if not kinds:
        return Estimate(0.0, None, None)
    in_vocabulary = np.asarray([kind[0] in vocabulary for kind in kinds])
    return count_statistic(
        lambda row: ((row > 0) & in_vocabulary).sum() / len(vocabulary), counts, seed=seed, most=1.0
    )


def copied_share(
    texts: Sequence[Sequence[int]], training: np.ndarray, n: int, *, seed: int
) -> Estimate:
    """Return the share of the n-grams of texts that occur in the training tokens [N].

    1 is copying; with n of 8 or more, new text is near 0. NOTHING if no text has n tokens.
    Raises DataError for a negative id.
    """
    if any(min(text, default=0) < 0 for text in texts):
        raise DataError("a text holds a negative token id; leave it out")
    grams = {gram for text in texts for gram in ngrams(text, n)}
    in_training = _find_in_training(grams, np.asarray(training), n)
    rows = [[gram in in_training for gram in ngrams(text, n)] for text in texts]
    hits = np.asarray([sum(row) for row in rows], float)
    return ratio(hits, np.asarray([len(row) for row in rows], float), seed=seed)


def _find_in_training(queries: set[tuple], training: np.ndarray, n: int) -> set[tuple]:
    """Return the queries that occur in the training tokens: candidates by hash, then exact."""
    if not queries or len(training) < n:
        return set()
    factor = np.uint64(0x9E3779B97F4A7C15)
    grams = np.asarray(sorted(queries), np.uint64)
    hashes, own = np.zeros(len(training) - n + 1, np.uint64), np.zeros(len(grams), np.uint64)
    for i in range(n):
        hashes = hashes * factor + training[i : len(training) - n + 1 + i].astype(np.uint64)
        own = own * factor + grams[:, i]
    places = np.flatnonzero(np.isin(hashes, own))
    return {tuple(training[p : p + n].tolist()) for p in places} & queries


def length(texts: Sequence[Tokens], *, seed: int) -> Estimate:
    """Return the mean length of texts in tokens."""
    return interval(lambda x: x.mean(axis=-1), [float(len(t)) for t in texts], seed=seed)

"""Quality of text: likelihood, overlap with references, right answers."""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from math import exp, log
from typing import Any, Literal

import numpy as np

from jaxgen.errors import DataError, MissingPackageError
from jaxgen.measure.bootstrap import NOTHING, Estimate, interval, mean, ratio

EXTRA = 'pip install "jaxgen[eval]"'
LARGEST = log(sys.float_info.max)
Rouge = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


def compute_installed(figures: Mapping[str, Callable[[], Estimate]]) -> dict[str, Estimate]:
    """Return the figures whose packages are installed, each computed by calling it."""
    estimates = {}
    for name, figure in figures.items():
        with suppress(MissingPackageError):
            estimates[name] = figure()
    return estimates


def bits_per_byte(logp: np.ndarray, sizes: np.ndarray, *, seed: int) -> Estimate:
    """Return bits per byte of blocks of text: logp [N] nats and sizes [N] bytes of each block."""
    return ratio(-np.asarray(logp) / log(2), np.asarray(sizes), seed=seed)


def perplexity(logp: np.ndarray, tokens: np.ndarray, *, seed: int) -> Estimate:
    """Return perplexity per token of blocks: logp [N] nats, tokens [N] predicted in each.

    None where it is infinite, or more than a float holds (1e308).
    """
    nll = ratio(-np.asarray(logp), np.asarray(tokens), seed=seed)
    return Estimate(*(None if x is None or x > LARGEST else exp(x) for x in nll))


def check_pairs(texts: Sequence[str], references: Sequence[str]) -> None:
    """Raise DataError for no texts, another number of references, or a reference of spaces."""
    if not texts:
        raise DataError("there are no hypotheses to measure; give at least one line")
    if len(texts) != len(references):
        raise DataError(
            f"{len(texts)} hypotheses but {len(references)} references; give one for each"
        )
    blank = next((i for i, text in enumerate(references) if not text.strip()), None)
    if blank is not None:
        raise DataError(f"reference {blank + 1} is empty or only spaces; leave the pair out")


def overlap(
    metric: Literal["bleu", "chrf", "ter"],
    texts: Sequence[str],
    references: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[Estimate, str]:
    """Return (corpus score with its interval, signature) as sacrebleu defines the metric.

    Sufficient statistics of the lines are resampled, as sacrebleu does. Raises DataError as
    `check_pairs` does, ConfigError without the extra.
    """
    check_pairs(texts, references)
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
        from sacrebleu.metrics.ter import TER
    except ImportError:
        raise MissingPackageError(f"{metric} needs sacrebleu: {EXTRA}") from None
    scorer: Any = {"bleu": BLEU, "chrf": CHRF, "ter": TER}[metric]()
    value = scorer.corpus_score(list(texts), [list(references)]).score
    signature = str(scorer.get_signature())
    if len(texts) == 1:
        return Estimate(float(value), None, None), signature
    lines = np.asarray(scorer._extract_corpus_statistics(list(texts), [list(references)]))
    rows = np.random.default_rng(seed).integers(0, len(texts), (resamples, len(texts)))
    scores = [scorer._compute_score_from_stats(s.tolist()).score for s in lines[rows].sum(axis=1)]
    low, high = np.percentile(scores, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high)), signature


def rouge(
    kind: Rouge,
    texts: Sequence[str],
    references: Sequence[str],
    *,
    seed: int,
    tokenizer: Any = None,
) -> Estimate:
    """Return the mean F-measure of rouge-score, 0 to 1, with stemming off.

    tokenizer: an object with .tokenize(text); None takes rouge-score's own, which sees only ASCII
    letters and digits. NOTHING where it sees no word in some reference. Raises DataError as
    `check_pairs` does, ConfigError without the extra.
    """
    check_pairs(texts, references)
    try:
        from rouge_score import rouge_scorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError:
        raise MissingPackageError(f"{kind} needs rouge-score: {EXTRA}") from None
    scorer = rouge_scorer.RougeScorer([kind], tokenizer=tokenizer)
    if not all(map((tokenizer or DefaultTokenizer()).tokenize, references)):
        return NOTHING
    pairs = zip(texts, references, strict=True)
    scores = [float(scorer.score(ref, text)[kind].fmeasure) for text, ref in pairs]
    return mean(scores, seed=seed)


def meteor(texts: Sequence[str], references: Sequence[str], *, seed: int) -> Estimate:
    """Return the mean METEOR, 0 to 1, of words that are equal or have equal stems.

    Lavie and Agarwal 2007 as nltk has it, with its Porter stemmer, but without the stage of
    WordNet's synonyms, which would need a download; words are what white space parts, in lower
    case. Raises DataError as `check_pairs` does, ConfigError without the extra.
    """
    check_pairs(texts, references)
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        raise MissingPackageError(f"METEOR needs nltk: {EXTRA}") from None
    stem = PorterStemmer().stem
    pairs = zip(texts, references, strict=True)
    return mean([_meteor(a.lower().split(), b.lower().split(), stem) for a, b in pairs], seed=seed)


def _meteor(text: list[str], reference: list[str], stem: Callable[[str], str]) -> float:
    pairs = _align(text, reference)
    used = {i for i, _ in pairs}, {j for _, j in pairs}
    left = [[i for i in range(len(x)) if i not in indices]
            for x, indices in zip((text, reference), used, strict=True)]  # fmt: skip
    stems = _align([stem(text[i]) for i in left[0]], [stem(reference[j]) for j in left[1]])
    pairs = sorted([*pairs, *((left[0][i], left[1][j]) for i, j in stems)])
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(text), len(pairs) / len(reference)
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    penalty = 0.5 * (chunks / len(pairs)) ** 3
    return (1 - penalty) * precision * recall / (0.9 * precision + 0.1 * recall)


def _align(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of places with equal words, matched from the end as nltk does."""
    places: dict[str, list[int]] = {}
    for j, word in enumerate(b):
        places.setdefault(word, []).append(j)
    matches = []
    for i in range(len(a) - 1, -1, -1):
        if places.get(a[i]):
            matches.append((i, places[a[i]].pop()))
    return matches


def normalize_answer(answer: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no punctuation, articles or spaces."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(texts: Sequence[str], references: Sequence[str], *, seed: int) -> Estimate:
    """Return the share of answers equal to their reference after `normalize_answer` (SQuAD 1.1)."""
    check_pairs(texts, references)
    hits = [
        normalize_answer(a) == normalize_answer(b) for a, b in zip(texts, references, strict=True)
    ]
    return mean(np.asarray(hits, float), seed=seed)


def f1(texts: Sequence[str], references: Sequence[str], *, seed: int) -> Estimate:
    """Return the mean F1 of the bags of words of answers after `normalize_answer` (SQuAD 1.1)."""
    check_pairs(texts, references)
    return mean([_f1(a, b) for a, b in zip(texts, references, strict=True)], seed=seed)


def _f1(text: str, reference: str) -> float:
    a, b = Counter(normalize_answer(text).split()), Counter(normalize_answer(reference).split())
    if not a or not b:
        return float(a == b)
    common = (a & b).total()
    return 2 * common / (a.total() + b.total())


def similarity(
    encode: Callable[[Sequence[str]], np.ndarray],
    texts: Sequence[str],
    references: Sequence[str],
    *,
    seed: int,
) -> Estimate:
    """Return the mean cosine of embeddings, encode: texts -> [N, D]; 0 where one is all zeros.

    Raises DataError as `check_pairs` does, and for vectors that are not finite or not N.
    """
    check_pairs(texts, references)
    a, b = np.asarray(encode(texts), float), np.asarray(encode(references), float)
    if a.shape != b.shape or a.ndim != 2 or len(a) != len(texts):
        raise DataError(f"{len(texts)} texts got vectors of shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("the vectors of the texts are not finite; take another model")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    return interval(lambda x: x.mean(axis=-1), cosine, seed=seed)

"""How good text is: likelihood, overlap with references, right answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from math import exp, log
from typing import Any, Literal

import numpy as np

from jaxgen.errors import ConfigError, DataError
from jaxgen.measure.bootstrap import NOTHING, Estimate, interval, mean, ratio

EXTRA = 'install it with pip install "jaxgen[eval]"'
Rouge = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


def bits_per_byte(logp: np.ndarray, sizes: np.ndarray, *, seed: int) -> Estimate:
    """Return bits per byte of blocks of text: logp [N] nats and sizes [N] bytes of each block."""
    return ratio(-np.asarray(logp) / log(2), np.asarray(sizes), seed=seed)


def perplexity(logp: np.ndarray, tokens: np.ndarray, *, seed: int) -> Estimate:
    """Return perplexity per token of blocks: logp [N] nats, tokens [N] predicted in each."""
    found = ratio(-np.asarray(logp), np.asarray(tokens), seed=seed)
    return Estimate(*(None if x is None else exp(min(x, 700.0)) for x in found))


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
        raise ConfigError(f"{metric} needs sacrebleu; {EXTRA}") from None
    scorer: Any = {"bleu": BLEU, "chrf": CHRF, "ter": TER}[metric]()
    value = scorer.corpus_score(list(texts), [list(references)]).score
    signature = str(scorer.get_signature())
    if len(texts) == 1:
        return Estimate(float(value), None, None), signature
    lines = np.asarray(scorer._extract_corpus_statistics(list(texts), [list(references)]))
    drawn = np.random.default_rng(seed).integers(0, len(texts), (resamples, len(texts)))
    found = [scorer._compute_score_from_stats(s.tolist()).score for s in lines[drawn].sum(axis=1)]
    low, high = np.percentile(found, [2.5, 97.5])
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
    letters and digits. Raises DataError as `check_pairs` does, ConfigError without the extra.
    """
    check_pairs(texts, references)
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise ConfigError(f"{kind} needs rouge-score; {EXTRA}") from None
    scorer = rouge_scorer.RougeScorer([kind], tokenizer=tokenizer)
    pairs = zip(texts, references, strict=True)
    return mean([scorer.score(ref, text)[kind].fmeasure for text, ref in pairs], seed=seed)


def normalized(answer: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no punctuation, articles or spaces."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(texts: Sequence[str], references: Sequence[str], *, seed: int) -> Estimate:
    """Return the share of answers equal to their reference after `normalized` (SQuAD 1.1)."""
    check_pairs(texts, references)
    hits = [normalized(a) == normalized(b) for a, b in zip(texts, references, strict=True)]
    return mean(np.asarray(hits, float), seed=seed)


def f1(texts: Sequence[str], references: Sequence[str], *, seed: int) -> Estimate:
    """Return the mean F1 of the bags of words of answers after `normalized` (SQuAD 1.1)."""
    check_pairs(texts, references)
    return mean([_f1(a, b) for a, b in zip(texts, references, strict=True)], seed=seed)


def _f1(text: str, reference: str) -> float:
    a, b = Counter(normalized(text).split()), Counter(normalized(reference).split())
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
    """Return the mean cosine of embeddings, encode: texts -> [N, D]; 0 where one is all zeros."""
    check_pairs(texts, references)
    a, b = np.asarray(encode(texts), float), np.asarray(encode(references), float)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    return interval(lambda x: x.mean(axis=-1), cosine, seed=seed) if len(a) else NOTHING


def frontier(p: np.ndarray, q: np.ndarray, *, scale: float = 5.0, points: int = 25) -> float:
    """Return MAUVE of two histograms over the same clusters (Pillutla et al. 2021).

    The area under the curve of (exp(-c KL(q|r)), exp(-c KL(p|r))) for mixtures r of p and q,
    averaged over both axes as mauve-text does. p, q: [clusters], each summing to one.
    """
    weights = np.linspace(1e-6, 1 - 1e-6, points)[:, None]
    mixed = weights * p + (1 - weights) * q
    # The ends of the curve: one histogram alone leaves the other infinitely far.
    x = np.r_[1.0, np.exp(-scale * _kl(q, mixed)), 0.0]
    y = np.r_[0.0, np.exp(-scale * _kl(p, mixed)), 1.0]
    return (_area(x[::-1], y[::-1]) + _area(y, x)) / 2


def _kl(p: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    positive = p > 0
    return (p[positive] * np.log(p[positive] / mixed[:, positive])).sum(axis=1)


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())

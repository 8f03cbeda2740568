"""The cases of parity with transformers: shared by the maker of golden files and the test.

A case is (name, settings, length): a processor, its settings, and how many tokens of the history
it sees. Chains are lists of (name, settings).
"""

import numpy as np

V, B, S = 37, 4, 24
STOP = [5, 11]
LENGTHS = (1, 2, 3, 7, 24)

SHAPES = [
    *[("temperature", {"value": v}) for v in (0.3, 1.0, 1.7)],
    *[("top_k", {"count": v}) for v in (1, 5, V, 99)],
    ("top_k", {"count": 1, "keep": 3}),
    *[("top_p", {"mass": v}) for v in (1e-6, 0.3, 0.9, 0.999)],
    ("top_p", {"mass": 0.05, "keep": 4}),
    *[("top_h", {"share": v}) for v in (0.2, 0.65, 0.95)],
    *[("min_p", {"share": v}) for v in (0.0, 0.05, 0.4, 1.0)],
    ("min_p", {"share": 0.9, "keep": 3}),
    *[("typical", {"mass": v}) for v in (0.05, 0.5, 0.95)],
    ("typical", {"mass": 0.1, "keep": 3}),
    *[("epsilon", {"cutoff": v}) for v in (1e-4, 0.02, 0.9)],
    ("epsilon", {"cutoff": 0.5, "keep": 3}),
    *[("eta", {"cutoff": v}) for v in (1e-4, 0.02, 0.9)],
    ("renormalize", {}),
    ("suppress", {"tokens": [0, 3, 36]}),
]
PASTS = [
    *[("repetition_penalty", {"penalty": v}) for v in (0.7, 1.0, 1.9)],
    ("repetition_penalty", {"penalty": 1.5, "over": "new"}),
    *[("source_penalty", {"penalty": v}) for v in (0.8, 2.0)],
    *[("no_repeat_ngram", {"size": v}) for v in (1, 2, 3, 5)],
    *[("no_repeat_source", {"size": v}) for v in (1, 2, 3)],
    *[("min_length", {"count": v, "stop": STOP}) for v in (0, 3, 8)],
    *[("min_new_tokens", {"count": v, "stop": STOP}) for v in (1, 4)],
    ("force_first", {"token": 9}),
    *[("force_last", {"token": t, "length": n}) for t, n in ((7, 1), (STOP, 2), (STOP, 6))],
    *[("length_decay", {"start": n, "factor": f, "stop": STOP}) for n, f in ((0, 1.3), (3, 0.8))],
    ("suppress_first", {"tokens": [0, 3, 36]}),
    ("sequence_bias", {"biases": {(4,): 2.5, (1, 2): -3.0, (2, 1): 4.0, (1, 2, 1, 2): 7.0}}),
    ("sequence_bias", {"biases": {(8,): 1.0, (9,): -1.5}}),
    ("bad_words", {"words": [[4], [1, 2], [0, 1, 2, 0], [5]], "keep": [5]}),
    ("bad_words", {"words": [[2, 1], [1, 1], [5]]}),
]
CHAINS = [
    [("temperature", {"value": 0.6}), ("top_k", {"count": 9}), ("top_p", {"mass": 0.8})],
    [("top_p", {"mass": 0.8}), ("temperature", {"value": 0.6})],
    [
        ("repetition_penalty", {"penalty": 1.3}),
        ("no_repeat_ngram", {"size": 2}),
        ("min_new_tokens", {"count": 4, "stop": STOP}),
        ("temperature", {"value": 1.4}),
        ("top_k", {"count": 12}),
        ("min_p", {"share": 0.1}),
        ("renormalize", {}),
    ],
    [
        ("sequence_bias", {"biases": {(4,): 2.5, (1, 2): -3.0}}),
        ("bad_words", {"words": [[1, 1], [3]]}),
        ("suppress", {"tokens": [7]}),
        ("typical", {"mass": 0.8}),
        ("eta", {"cutoff": 0.01}),
        ("epsilon", {"cutoff": 0.01}),
    ],
]


def cases() -> list[tuple[list, int]]:
    """Return every (chain, length); the shape of one row does not read a history."""
    found = [([one], S) for one in SHAPES]
    found += [([one], length) for one in PASTS for length in LENGTHS]
    return found + [(one, length) for one in CHAINS for length in (2, S)]


def prompt_length(length: int) -> int:
    """Return how many of `length` known tokens are the prompt."""
    return 1 if length < 3 else 2


def inputs() -> dict[str, np.ndarray]:
    """Return logits [N, B, V] (plain, with ties, with bans, wide), tokens and source [B, S]."""
    random = np.random.default_rng(20)
    plain = random.normal(size=(B, V)) * 2
    tied = np.round(random.normal(size=(B, V)) * 1.5)
    banned = np.where(random.random((B, V)) < 0.4, -np.inf, random.normal(size=(B, V)))
    wide = random.normal(size=(B, V)) * 40
    logits = np.stack([plain, tied, banned, wide]).astype(np.float32)
    # Few ids, so that n-grams do repeat.
    tokens = random.integers(0, 3, (B, S)).astype(np.int32)
    source = random.integers(0, 4, (B, S)).astype(np.int32)
    return {"logits": logits, "tokens": tokens, "source": source}

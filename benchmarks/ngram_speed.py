"""How fast does the n-gram train on 10 M words and score 1 M, on this machine's cores?

    python benchmarks/ngram_speed.py

Words are drawn from a Zipf law with 50,000 types and copied phrases, so that all orders are full.
Writes benchmarks/results/ngram_speed.json.
"""

import json
import os
import resource
import time
from pathlib import Path

import numpy as np

from jaxgen.models.classic import ngram

TYPES, WORDS, SCORED, ORDER = 50_000, 10_000_000, 1_000_000, 5


def corpus(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, offsets) of sentences of 20 words; half of the text repeats phrases."""
    p = 1 / np.arange(1, TYPES + 1)
    words = rng.choice(TYPES, size=size, p=p / p.sum())
    phrases = words[: size // 100 * 10 // 10].reshape(-1, 10)
    places = rng.integers(0, size // 10, size=size // 20)
    words.reshape(-1, 10)[places] = phrases[rng.integers(0, len(phrases), size=len(places))]
    return words, np.arange(0, size + 1, 20)


rng = np.random.default_rng(0)
text = corpus(WORDS, rng)
held = (text[0][-SCORED:], np.arange(0, SCORED + 1, 20))
config = ngram.NGram(vocab_size=TYPES, order=ORDER)
begin = time.perf_counter()
params = ngram.train(config, *text)
trained = time.perf_counter()
ngram.score(params, config, *held)
scored = time.perf_counter()
found = {
    "words": WORDS,
    "order": ORDER,
    "n_grams": {n: len(level["logp"]) for n, level in params.items()},
    "train_seconds": round(trained - begin, 2),
    "train_words_per_second": round(WORDS / (trained - begin)),
    "score_words_per_second": round(SCORED / (scored - trained)),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],
}
path = Path(__file__).parent / "results" / "ngram_speed.json"
path.write_text(json.dumps(found, indent=2) + "\n")
print(json.dumps(found, indent=2))

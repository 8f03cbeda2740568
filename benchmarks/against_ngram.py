"""Does the Transformer beat a 5-gram in bits per byte, at equal training text?

    python benchmarks/against_ngram.py quickstart
    python benchmarks/against_ngram.py shakespeare_char --text path/to/tinyshakespeare.txt

The n-gram is trained and scored here, on the tokens that main_job.py's Transformer was trained and
validated on; that one's figure is read from benchmarks/results/NAME.json. Every order from 1 to 9
is measured, so that nobody can say the order was unlucky. Writes NAME_ngram.json.
"""

import argparse
import json
import tempfile
import time
from math import log
from pathlib import Path

import numpy as np

from jaxgen.models.classic import ngram
from jaxgen.run import config_folder, inputs, read_settings

RESULTS = Path(__file__).parent / "results"


def bits_per_byte(corpus, tokenizer, order: int) -> dict:
    """Return the figures of one order on the validation split."""
    config = ngram.NGram(vocab_size=tokenizer.vocab_size, order=order, begin=tokenizer.special.bos)
    begin = time.perf_counter()
    params = ngram.train(config, corpus.train.tokens, corpus.train.offsets)
    trained = time.perf_counter()
    logp = ngram.score(params, config, corpus.valid.tokens, corpus.valid.offsets)
    predicted = np.ones(len(logp), bool)
    predicted[corpus.valid.offsets[:-1].astype(np.int64)] = False
    sizes = tokenizer.byte_lengths[corpus.valid.tokens]
    return {
        "order": order,
        "bits_per_byte": round(float(-logp[predicted].sum() / log(2) / sizes[predicted].sum()), 4),
        "train_seconds": round(trained - begin, 2),
        "n_grams": sum(len(level["logp"]) for level in params.values()),
    }


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("name", choices=("quickstart", "shakespeare_char"))
parser.add_argument("--text", type=Path)
given = parser.parse_args()
words = [f"data.files=[{given.text.resolve()}]"] if given.text else []
settings = read_settings(config_folder() / f"{given.name}.yaml", words)
tokenizer = inputs.make_tokenizer(settings)
with tempfile.TemporaryDirectory() as cache:
    corpus = inputs.prepare(settings, tokenizer, Path(cache))
    rows = [bits_per_byte(corpus, tokenizer, order) for order in range(1, 10)]
theirs = json.loads((RESULTS / f"{given.name}.json").read_text())
found = {
    "name": given.name,
    "training_tokens": len(corpus.train.tokens),
    "transformer_bits_per_byte": theirs["bits_per_byte"],
    "ngrams": rows,
}
(RESULTS / f"{given.name}_ngram.json").write_text(json.dumps(found, indent=2) + "\n")
print(json.dumps(found, indent=2))

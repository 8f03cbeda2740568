"""Semantic search: embed texts with a folder's model, find the nearest to a question.

Give the folder of a run or of a Hugging Face encoder: `python embed_search.py FOLDER "question"`.
Without one, a small untrained encoder is made, which shows the way but knows no meaning.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen.tokens import TokenizerSettings, train

TEXTS = [
    "Return a list of the names of the entries in a directory.",
    "Open a file and return a stream.",
    "Raise ValueError if the number is negative.",
    "Connect a socket to a remote address.",
    "Sort a list in place, in ascending order.",
    "Return the absolute value of a number.",
]


def small_encoder(folder: Path) -> Path:
    """Write a small encoder that reads bytes, its weights as initialised."""
    config = jaxgen.ModelConfig(
        topology="encoder", head="none", vocab_size=259, context=128,
        layers=2, d_model=64, heads=4, positions="sinusoid",
    )  # fmt: skip
    tokenizer = train(TokenizerSettings(kind="bytes"), [])
    jaxgen.save(folder, config, jaxgen.init(config, jax.random.key(0)), tokenizer=tokenizer)
    return folder


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length one, whose products are cosines."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    home = tempfile.TemporaryDirectory()
    folder = sys.argv[1] if len(sys.argv) > 1 else small_encoder(Path(home.name) / "encoder")
    question = sys.argv[2] if len(sys.argv) > 2 else TEXTS[4]
    session = jaxgen.open(folder)
    index = unit(session.embed(TEXTS))  # [N, D]; for many texts, keep it with np.save
    cosines = index @ unit(session.embed([question]))[0]
    for row in np.argsort(-cosines)[:3]:
        print(f"{cosines[row]:.3f}  {TEXTS[row]}")
    home.cleanup()


if __name__ == "__main__":
    main()

"""Semantic search: embed texts with a folder's model, find the nearest to a question.

Give the folder of a run or of a Hugging Face encoder, and a file with a text a line to search:
`python embed_search.py FOLDER "question" texts.txt`. Without a folder a small untrained encoder is
made, which shows the way but knows no meaning.
"""

import argparse
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("question", nargs="?", default=TEXTS[4])
    parser.add_argument("texts", nargs="?", type=Path, help="a file with a text a line")
    args = parser.parse_args()
    lines = TEXTS if args.texts is None else args.texts.read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()]
    session = jaxgen.open(args.folder or small_encoder(Path(home.name) / "encoder"))
    index = unit(session.embed(texts))  # [N, D]; for many texts, keep it with np.save
    cosines = index @ unit(session.embed([args.question]))[0]
    for row in np.argsort(-cosines)[:3]:
        print(f"{cosines[row]:.3f}  {texts[row]}")
    home.cleanup()


if __name__ == "__main__":
    main()

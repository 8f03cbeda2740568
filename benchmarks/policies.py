"""Policies: no blocked text in a million drawn characters, and what a policy costs.

    python benchmarks/policies.py                  # both parts
    python benchmarks/policies.py leaks --characters 1000000
    python benchmarks/policies.py cost --model smollm2 --rounds 5

leaks: tokens are drawn that spell the blocked words, and parts of characters, more often than not,
with tokenizers of bytes, byte-level BPE, unigram and WordPiece. Each text is looked at twice: by
the filter of shown texts, and by reading it character by character. cost: seconds of the same draws
with a policy and without, in turns; the policy's rules never match, so that both draw the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen.safety.token_filter import pieces_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "safety"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
ROWS, LENGTH = 128, 256
POLICY = """
rules:
- name: words
  words: [{words}]
- {{name: code, regex: ['PRJ-[0-9]{{4}}'], action: forbid}}
- {{name: personal, personal: [card, iban, email, phone, key], action: mask}}
"""


def leaks(characters: int) -> None:
    import test_token_filter as cases

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("bytes", "bpe", "unigram", "wordpiece"):
            tokenizer = cases.tokenizer(kind, folder)
            draw, seen, found, seed, begun = drawer(cases, tokenizer), 0, 0, 0, time.monotonic()
            while seen < characters // 4:
                tokens = np.asarray(draw(jax.random.key(seed)))
                for row in tokens:
                    text = tokenizer.decode([i for i in row.tolist() if i >= 0])
                    stream = cases.RULES.text_filter()
                    stream.push(text)
                    stream.flush()
                    read = any(cases.may_read(text, word) for word in cases.WORDS)
                    found += bool(stream.matches) or read
                    seen += len(text)
                seed += 1
            seconds = time.monotonic() - begun
            print(f"{kind}: {seen} characters, {found} blocked texts, {seconds:.0f} s", flush=True)


def drawer(cases, tokenizer):
    pieces, stop = pieces_of(tokenizer), np.asarray([[tokenizer.special.eos]])
    letters = {c for word in cases.WORDS for c in word.encode()} | set(
        b"x0123456789-qu \xc3\xef\xbc"
    )
    wanted = [bool(piece) and set(piece) <= letters for piece in pieces]
    logits = jnp.where(
        jnp.asarray(wanted), 3.0, jnp.where(jnp.arange(len(pieces)) == stop, -9, 0.0)
    )
    limits, stops = np.full(ROWS, LENGTH, np.int32), np.repeat(stop, ROWS, 0)
    sample = jaxgen.chain(cases.RULES.processor(tokenizer, [()] * ROWS, limits, stops))
    first = jnp.zeros(ROWS, jnp.int32)

    def step(tokens, cache):
        return jnp.broadcast_to(logits, (ROWS, len(pieces))), cache

    @jax.jit
    def draw(key):
        about = {"stop": stop[0], "prompt": first[:, None]}
        return jaxgen.decode(step, (), first, key, sample, LENGTH, **about)[0]

    return draw


def cost(model: str, rounds: int, length: int) -> None:
    session = jaxgen.open(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        words = ", ".join(f"zq{a}{b}xk" for a in "abcdefghij" for b in "klmno")
        path.write_text(POLICY.format(words=words))
        ways = {"without": {}, "with": {"policy": str(path)}}
        settings = {"max_new_tokens": length, "temperature": 1.0, "seed": 0}
        begun, texts, seconds = time.monotonic(), {}, {name: [] for name in ways}
        for name, way in ways.items():  # compiled here
            texts[name] = session.generate("The weather today", **settings, **way)
        alike = len(set(texts.values())) == 1
        print(f"compiled in {time.monotonic() - begun:.1f} s; same text: {alike}")
        for _ in range(rounds):
            for name, way in ways.items():
                begun = time.monotonic()
                session.generate("The weather today", **settings, **way)
                seconds[name].append(time.monotonic() - begun)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"{name}: {length / value:.1f} tokens/s (median of {rounds})")
    print(f"cost: {100 * (middle['with'] / middle['without'] - 1):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("leaks", "cost"))
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=128)
    about = parser.parse_args()
    if about.part in (None, "leaks"):
        leaks(about.characters)
    if about.part in (None, "cost"):
        cost(about.model, about.rounds, about.length)


if __name__ == "__main__":
    main()

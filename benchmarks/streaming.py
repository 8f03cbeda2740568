"""What does it cost that text arrives every few tokens, instead of all at once?

    python benchmarks/streaming.py

A GPT-2-like model of 6 layers and 384 dimensions with random weights completes one prompt, streamed
in chunks as `jaxgen generate` does, and by one compiled scan over all tokens; both end in text. The
same settings, the same cache bucket, timed in turn. Writes results/streaming.json.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import sides

import jaxgen
from jaxgen import tokens
from jaxgen.text import programs
from jaxgen.text.batch_decoding import CHUNK
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.prompts import requests_of
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt, Session

CONFIG = jaxgen.ModelConfig(vocab_size=8192, context=256, layers=6, d_model=384, heads=6)
PROMPT = "The value of a list"
STREAMED, WHOLE = "streamed", "one scan"


def streamed(session: Session, settings: Generation) -> tuple[str, int]:
    """Return (text, pieces) of a text that is told piece by piece."""
    pieces = list(session.stream(PROMPT, settings))
    return "".join(pieces), len(pieces)


def whole(session: Session, settings: Generation) -> str:
    """Return the same text, made by one scan."""
    ((request,),) = requests_of(session.model, [Prompt(PROMPT, settings)])
    group = session.request_batch((request,), None)
    (made,) = programs.sample_chunks(
        *group.inputs,
        request.limit,
        top=0,  # as the stream does where a setting bans tokens
    )
    return group.begin(request).stream.push(np.asarray(made.tokens)[0].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=96, help="new tokens")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    params = jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))
    session = Session(LoadedModel(CONFIG, params, tokenizer), params)
    length = given.length
    settings = Generation(temperature=1.0, max_new_tokens=length, min_new_tokens=length)
    (text, pieces), first = sides.once(lambda: streamed(session, settings))
    same, _ = sides.once(lambda: whole(session, settings))
    assert text == same, (text, same)
    both = {
        STREAMED: lambda: streamed(session, settings),
        WHOLE: lambda: whole(session, settings),
    }
    seconds = sides.in_turn(both, given.rounds)
    found = {
        "model": {"layers": CONFIG.layers, "d_model": CONFIG.d_model, "vocabulary": CONFIG.V},
        "new_tokens": length,
        "tokens_per_chunk": CHUNK,
        "pieces": pieces,
        "first_call_seconds": round(first, 3),
        "seconds": {name: sides.figures(of) for name, of in seconds.items()},
        "cost": sides.ratio(seconds, STREAMED, WHOLE),
        "threads": sides.threads(),
        "environment": sides.environment(),
    }
    sides.write("streaming", found)


if __name__ == "__main__":
    main()

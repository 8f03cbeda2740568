"""Does it pay that a server's steps read guesses copied from the text itself?

    python benchmarks/read_ahead.py smollm2                 minutes, most of them to compile
    python benchmarks/read_ahead.py smollm2 --texts 4       as many requests of a kind at once

Sides, in turn in one process: the engine of `jaxgen serve` with `--lookup 0` and with `--lookup N`.
Requests are chats, answered greedily: to edit a text, to quote from it, and to tell a story, where
little repeats. Both sides have to give the same tokens.
"""

from __future__ import annotations

import argparse
import threading
from functools import partial
from typing import Any

import sides

import jaxgen
from jaxgen.ops.cpu import allocator
from jaxgen.serve.engine import Engine
from jaxgen.serve.tickets import Finished
from jaxgen.text.loaded_model import template_of
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.text.tool_calls import chat_ids

TEXT = (
    "Tom Harker kept the lighthouse at Gull Point for thirty years. Every evening Tom climbed the "
    "hundred and nine steps, trimmed the wick, and wrote the weather in a blue book. In the winter "
    "of the great storm the sea broke the windows of the lower room, and Tom carried the lamp up "
    "by hand. He never spoke of it, but the blue book says: the light did not fail."
)
ASKED = {
    "edit": f"Write the following text again, with the name Sam in place of Tom.\n\n{TEXT}",
    "quote": f"{TEXT}\n\nQuote the sentences about the storm and the blue book, word for word.",
    "story": "Tell me a story about a girl who builds a boat.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--lookup", type=int, default=4)
    parser.add_argument("--texts", type=int, default=1, help="requests at once")
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    allocator.tune()
    session = jaxgen.open(given.model)
    template, settings = (
        template_of(session.model),
        Generation(max_new_tokens=given.length, temperature=0.0),
    )
    ids = {
        kind: chat_ids(session, template, [{"role": "user", "content": text}])
        for kind, text in ASKED.items()
    }

    def answers(engine: Engine, kind: str) -> list[list[int]]:
        heard: list[Any] = [None] * given.texts
        done = threading.Semaphore(0)

        def listen(number: int, event: Any) -> None:
            if isinstance(event, Finished):
                heard[number] = event.completion.tokens
                done.release()

        for number in range(given.texts):
            prompt = Prompt(list(ids[kind]), settings)
            engine.submit(prompt, partial(listen, number))
        for _ in heard:
            assert done.acquire(timeout=1000)
        return heard

    sizes = {"slots": given.texts, "context": 512}
    with Engine(session, **sizes) as plain, Engine(session, **sizes, lookup=given.lookup) as ahead:
        for kind in ASKED:
            engines = {"lookup 0": plain, f"lookup {given.lookup}": ahead}
            found, steps = {}, {}
            for name, engine in engines.items():
                found[name] = answers(engine, kind)
                before = engine.stats().steps
                answers(engine, kind)  # the prompt is in the prefix cache, as in all rounds
                steps[name] = engine.stats().steps - before
            first, second = found.values()
            assert first == second, "the sides differ"
            calls = {name: partial(answers, engine, kind) for name, engine in engines.items()}
            seconds = sides.in_turn(calls, given.rounds)
            tokens = sum(map(len, first))
            for name, of in seconds.items():
                figures = sides.figures(of)
                rate = tokens / figures["median_seconds"]
                print(f"{kind:6} {name:9} {rate:7.1f} tokens/s, {steps[name]} steps  {figures}")
            print(kind, sides.ratio(seconds, *reversed(calls)), flush=True)


if __name__ == "__main__":
    main()

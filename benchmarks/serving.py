"""How many tokens a second does the engine give to 1, 8 and 32 clients, and how long do they wait?

    python benchmarks/serving.py MODEL [--weights int8] [--clients 1 8 32] [--seconds 20]

Each client asks, hears its text to the end and asks again; all are in this process, without HTTP.
Beside it stands `Session.run` of as many prompts as one batch, which nobody can join. Then a prompt
of many tokens is asked twice: the second time its keys and values come from the prefix cache.
Writes results/serving-WEIGHTS.json after each part. Programs of an earlier run are not compiled
again, so that `warm_up_seconds` is what a first start takes only where there was none.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from typing import Any

import sides

import jaxgen
from jaxgen.cli import paths, start
from jaxgen.serve.engine import Engine
from jaxgen.serve.tickets import Delta, Failed, Finished, Started
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation

QUESTIONS = ("What is a cat?", "Explain gravity to a child.", "Write a poem about rain.",
             "How do I cook rice?", "List three colours.", "Who was Ada Lovelace?",
             "Why is the sky blue?", "Tell me a joke.")  # fmt: skip


class Heard:
    """One request: when it was asked, when each piece came, and its tokens."""

    def __init__(self, engine: Engine, prompt: Prompt) -> None:
        self.times, self.tokens, self.cached = [time.perf_counter()], 0, 0
        self._end = threading.Event()
        engine.submit(prompt, self._hear)
        self._end.wait()

    def _hear(self, event: Any) -> None:
        if isinstance(event, Started):
            self.cached = event.cached_tokens
        if isinstance(event, Delta):
            self.times.append(time.perf_counter())
            self.tokens += len(event.tokens)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            self._end.set()


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 95th and 99th percentile, in seconds."""
    ordered = sorted(values)
    at = {name: ordered[int(share * (len(ordered) - 1))] for name, share in
          (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}  # fmt: skip
    found = {name: round(value, 4) for name, value in at.items()}
    return found | {"p99_over_p50": round(at["p99"] / at["p50"], 2)}


def clients(engine: Engine, prompts: list[Prompt], count: int, seconds: float) -> dict[str, Any]:
    """Return the figures of so many clients at once."""
    heard: list[Heard] = []
    before, begun, cpu = engine.stats(), time.perf_counter(), time.process_time()

    def ask(number: int) -> None:
        while time.perf_counter() - begun < seconds:
            heard.append(Heard(engine, prompts[number % len(prompts)]))
            number += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, cpu, after = time.perf_counter() - begun, time.process_time() - cpu, engine.stats()
    counts = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    tokens = sum(one.tokens for one in heard)
    gaps = [b - a for one in heard for a, b in zip(one.times[1:], one.times[2:], strict=False)]
    return {
        "tokens_per_second": round(tokens / taken, 1),
        "cpu_seconds_per_token": round(cpu / tokens, 5),
        "tokens_per_step": round(counts["generated_tokens"] / counts["steps"], 2),
        "prefix_hit_ratio": round(counts["cached_tokens"] / counts["prompt_tokens"], 3),
        "requests": len(heard),
        "first_piece_seconds": percentiles([one.times[1] - one.times[0] for one in heard]),
        "next_piece_seconds": percentiles(gaps),
    }


def batch(session: Any, prompts: list[Prompt]) -> dict[str, float]:
    """Return the figures of one batch, already compiled."""
    session.run(prompts)
    begun, cpu = time.perf_counter(), time.process_time()
    rows = session.run(prompts)
    taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
    tokens = sum(len(one.tokens) for row in rows for one in row)
    return {
        "tokens_per_second": round(tokens / taken, 1),
        "cpu_seconds_per_token": round(cpu / tokens, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or a GGUF file with a chat template")
    parser.add_argument("--weights", default="plain", choices=("plain", "int8", "stored"))
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--seconds", type=float, default=20.0, help="of asking, for each number")
    parser.add_argument("--length", type=int, default=64, help="new tokens at most")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=8)
    given = parser.parse_args()
    start.prepare_jax(paths.cache())  # as `jaxgen serve` does
    session = jaxgen.open(given.model, weights=given.weights)
    settings = Generation(temperature=0.0, max_new_tokens=given.length)
    asked = [session.chat_ids([{"role": "user", "content": text}]) for text in QUESTIONS]
    prompts = [Prompt(ids, settings) for ids in asked]
    slots = max(given.clients)
    found: dict[str, Any] = {"weights": given.weights, "slots": slots, "clients": {}}

    def write(show: bool = False, **part: Any) -> None:
        found.update(part)
        sides.write(f"serving-{given.weights}", found, show=show)

    with Engine(session, slots=slots, context=given.context, chunk=given.chunk) as engine:
        _, warm = sides.once(lambda: engine.warm_up(print))
        write(warm_up_seconds=round(warm, 1), tokens_per_chunk=given.chunk)
        for count in given.clients:
            clients(engine, prompts, count, 0.1)  # all prefixes are known
            found["clients"][str(count)] = clients(engine, prompts, count, given.seconds)
            write()
        write(first_piece_of_a_long_prompt=long_prompts(engine, given.context - 40))
        write(batch={str(n): batch(session, (prompts * n)[:n]) for n in given.clients})
        write(
            show=True,
            compilations_after_warm_up=engine.stats().compilations,
            threads=sides.threads(),
            environment=sides.environment(),
        )


def long_prompts(engine: Engine, length: int) -> dict[str, Any]:
    """Return the waits for prompts of so many tokens, which are new and then known."""
    long = [(7 * i) % 1000 + 100 for i in range(length)]
    waits: dict[str, list[float]] = {"new": [], "known": []}
    for number in range(5):
        for row in waits.values():
            prompt = Prompt([number + 100, *long], Generation(temperature=0.0, max_new_tokens=8))
            one = Heard(engine, prompt)
            row.append(one.times[1] - one.times[0])
    new, known = (statistics.median(row) for row in waits.values())
    figures = {"new_seconds": round(new, 4), "known_seconds": round(known, 4)}
    return {"tokens": length + 1, **figures, "times": round(new / known, 2)}


if __name__ == "__main__":
    main()

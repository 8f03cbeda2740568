"""Are attributions complete, and more faithful than chance? What does a trace cost?

    python benchmarks/explain.py [--model smollm2] [--prompts 16] [--draws 2] [--only trace]

Greedy continuations of a few prompts are explained by integrated gradients and exact Shapley
values, against random tokens (the mean of 2 draws). Completeness: |sum of the values - difference
of the log-probabilities| / |difference|. Faithfulness: the area between the curves of insertion and
deletion, less that of 32 random orders; its mean has a 95 % interval, by resampling tokens. A trace
is timed in turn with the same text generated. Each prompt's figures are kept in
results/explain-MODEL.jsonl as they come, so that the same command goes on; explain-MODEL.json sums
up. The baseline was chosen on other prompts than these (LOG.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen import explain
from jaxgen.explain.explanation import explained_config
from jaxgen.measure import bootstrap
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt

RESULTS = Path(__file__).parent / "results"
METHODS = ("integrated_gradients", "shapley")
WIDTH = 5  # tokens of a prompt
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "In the morning the sun rises in the",
    "A dog is an animal that likes to",
    "The sum of two and two equals",
    "The opposite of the word hot is",
    "She opened the door and walked into the",
    "Python is a programming language that",
    "The doctor told the patient to take",
    "In winter the lake is covered with",
    "The author of this famous book is",
    "We drove the car to the nearest",
    "Plants need water and light to",
    "The king and the queen lived in a",
    "The moon goes around the",
    "I would like a cup of",
)


def one_prompt(
    session: jaxgen.text.session.Session, prompt: str, count: int, draws: int
) -> list[dict]:
    """Return the figures of each new token of a prompt."""
    config = explained_config(session.config)
    greedy = Generation(max_new_tokens=count, temperature=0.0)
    # As many tokens of each, so that one program serves all.
    traced = explain.trace(session, Prompt(session.ids(prompt)[:WIDTH], greedy))
    ids = [*traced.ids, *traced.tokens]
    positions = list(range(len(traced.ids), len(ids)))
    params, key = session.model.params, jax.random.key(0)
    score, embeds = explain.token_scores(params, config, ids, positions)
    baselines = explain.no_text(params, config, len(embeds))[:draws]
    rows: list[dict] = [{"prompt": prompt, "token": token} for token in traced.tokens]
    for name in METHODS:
        method = getattr(explain, name)
        out = explain.average([method(score, embeds, baseline=one) for one in baselines])
        about = (score, embeds, out.values, key)
        how = {"visible": score.visible, "points": 5, "orders": 32}
        curves = explain.average(
            [explain.faithfulness(*about, **how, baseline=one) for one in baselines]
        )
        for row, gap, gain in zip(rows, out.gap.tolist(), curves.gain.tolist(), strict=True):
            row[name] = {"gap": gap, "gain": gain, "steps": int(out.steps)}
    return rows


def trace_cost(session: jaxgen.text.session.Session, repeats: int = 5) -> dict[str, float]:
    """Return seconds of a text of 24 tokens, generated and traced in turn, and their ratio."""
    settings = Generation(max_new_tokens=24, top_k=40, top_p=0.9, repetition_penalty=1.1)
    prompt, times = Prompt(PROMPTS[0], settings), {"generate": [], "trace": []}
    calls = {
        "generate": lambda: session.run([prompt]),
        "trace": lambda: explain.trace(session, prompt),
    }
    for _ in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}  # but the first
    return medians | {"ratio": medians["trace"] / medians["generate"]}


def summary(rows: list[dict]) -> dict[str, object]:
    """Return the share of complete tokens, and the mean gain with its interval, by method."""
    figures: dict[str, object] = {"tokens": len(rows)}
    for name in METHODS:
        gaps, gains = (np.asarray([row[name][key] for row in rows]) for key in ("gap", "gain"))
        figures[name] = {
            "complete": float((gaps <= 1e-3).mean()),
            "largest_gap": float(gaps.max()),
            "gain": bootstrap.mean(gains, seed=0)._asdict(),
            "better_than_chance": float((gains > 0).mean()),
        }
    return figures


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--draws", type=int, default=2, help="of random tokens, up to 4")
    parser.add_argument("--only", choices=("trace", "attribution"))
    args = parser.parse_args()
    session, name = jaxgen.open(args.model), Path(args.model).name
    kept = RESULTS / f"explain-{name}.jsonl"
    sums = RESULTS / f"explain-{name}.json"
    figures = json.loads(sums.read_text()) if sums.exists() else {"model": name}
    if args.only != "attribution":
        figures["trace"] = trace_cost(session)
        print(json.dumps(figures), flush=True)
    if args.only != "trace":
        rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
        for prompt in PROMPTS[: args.prompts]:
            if not any(row["prompt"] == prompt for row in rows):
                begun, new = (
                    time.perf_counter(),
                    one_prompt(session, prompt, args.tokens, args.draws),
                )
                rows += new
                with kept.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in new)
                print(f"{prompt}: {time.perf_counter() - begun:.0f} s", flush=True)
        figures |= summary(rows)
    print(json.dumps(figures, indent=1))
    sums.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

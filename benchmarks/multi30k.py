"""BLEU of a translation run on Multi30k, at beam 5, with the last checkpoints averaged.

    python benchmarks/multi30k.py runs/multi30k_en_de multi30k --split val
    python benchmarks/multi30k.py runs/multi30k_en_de multi30k --split test_2016_flickr

Writes results/multi30k_SOURCE_TARGET_SPLIT.json: sacrebleu of the detokenised, cased text with its
signature, the same without case, settings, training time and the learning curve; of a model of
small letters (tokenizer.lowercase, its own or inherited) only the score without case. The published
41.02 of Wu et al. (2021) is BLEU-4 of text tokenised beforehand, 12,103 tokens of reference; 13a
cuts the same 1,000 references into 12,106, so the uncased figure is the one to lay beside it.
"""

import argparse
import gzip
import json
import subprocess
import time
from pathlib import Path

import jax
import sacrebleu

from jaxgen import settings_yaml
from jaxgen.store import Checkpoints
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.text.request import Generation

RESULTS = Path(__file__).parent / "results"


def lines(folder, split, side):
    with gzip.open(folder / f"{split}.{side}.gz", "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def averaged(run, last):
    """(The last steps, their model with the mean of its parameters: Vaswani et al. 2017, 6.1)."""
    shelf = Checkpoints(run / "checkpoints", keep_last=1, keep_best=0, fingerprints={})
    steps = shelf.steps()[-last:]
    trees = [shelf.read(step)["params"] for step in steps]
    params = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)
    model = open_model(run)
    return steps, LoadedModel(model.config, params, model.tokenizer, model.start)


def are_small(texts):
    """Whether all letters are small: then the score with case means nothing."""
    return all(text == text.lower() for text in texts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--penalty", type=float, default=1.0)
    parser.add_argument("--average", type=int, default=10)
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    config = settings_yaml.read_yaml(asked.run / "config.yaml")
    source, target = config["data"]["sides"]
    texts = lines(asked.data, asked.split, source)[: asked.limit]
    wanted = lines(asked.data, asked.split, target)[: asked.limit]
    steps, model = averaged(asked.run, asked.average)
    begin = time.perf_counter()
    search = Generation(beams=asked.beam, length_penalty=asked.penalty)
    made = tasks.rewrite(model, texts, search, batch=64)
    took = time.perf_counter() - begin
    scores, ways = {}, {"uncased": True} if are_small(made) else {"cased": False, "uncased": True}
    for name, lowercase in ways.items():
        metric = sacrebleu.BLEU(lowercase=lowercase)
        score = metric.corpus_score(made, [wanted])
        scores[name] = {"bleu": score.score, "signature": str(metric.get_signature())}
        print(f"{name}: {score}  {metric.get_signature()}")
    environment = json.loads((asked.run / "env.json").read_text())
    if config["init_from"]:  # its name alone, as of the files below
        config["init_from"] = environment["init_from"]["folder"] = Path(config["init_from"]).name
    for key in ("files", "valid_files", "test_files"):
        config["data"][key] = [Path(path).name for path in config["data"][key]]
    curve = [json.loads(line) for line in (asked.run / "metrics.jsonl").read_text().splitlines()]
    commit = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty"]
    result = {
        "commit": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "environment": environment,
        "direction": f"{source}-{target}",
        "split": asked.split,
        "lines": len(texts),
        "scores": scores,
        "beam": asked.beam,
        "length_penalty": asked.penalty,
        "checkpoints_averaged": steps,
        "decoding_seconds": took,
        "training_seconds": curve[-1]["seconds"],
        "curve": [row for row in curve if row["kind"] == "valid"],
        "config": config,
    }
    path = RESULTS / f"multi30k_{source}_{target}_{asked.split}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for texts_ in zip(texts[:3], made[:3], wanted[:3], strict=True):
        print(*texts_, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()

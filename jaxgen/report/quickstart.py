"""The quickstart: training and generation on the text that comes with Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np

from jaxgen import files
from jaxgen.models.classic import ngram
from jaxgen.ops.cpu import allocator
from jaxgen.report.generators import ngram_config
from jaxgen.run import inputs
from jaxgen.run.folder import TOKENIZER, existing_settings
from jaxgen.run.settings import read_settings
from jaxgen.run.signals import StopRequest
from jaxgen.run.training import train
from jaxgen.tokens import load as load_tokenizer


def quickstart(
    folder: Path, assignments: Sequence[str], *, cache: Path, stop: StopRequest | None = None
) -> None:
    """Train configs/quickstart.yaml in `folder` and print its validation beside a 5-gram's.

    stop: see `training.train`. Raises what that raises; a finished run is shown again.
    """
    settings = read_settings(files.config_folder() / "quickstart.yaml", assignments)
    shown = _last_sample(folder)
    train(settings, folder, cache=cache, stop=stop)
    allocator.give_back()
    valid = _last_validation(folder / "metrics.jsonl")
    print(f"\nvalidation: {valid['bits_per_byte']:.3f} bits per byte at step {valid['step']}")
    print(f"a 5-gram of the same training text: {n_gram(folder, cache=cache):.3f}")
    if shown is not None and shown == _last_sample(folder):  # else training has just shown it
        print(f"\n{shown.read_text(encoding='utf-8').strip()}")
    print(f"\nnext: jaxgen generate {folder} --prompt 'The return value is'")
    print(f"      jaxgen report {folder}")


def n_gram(folder: Path, *, cache: Path) -> float:
    """Return the bits per byte of a modified Kneser-Ney 5-gram on a run's validation split.

    It predicts the tokens that `train.validate` predicts: all but the first of each document.
    """
    tokenizer = load_tokenizer(folder / TOKENIZER)
    corpus = inputs.prepare(existing_settings(folder), tokenizer, cache, folder=folder)
    config, held = ngram_config(tokenizer), corpus.valid
    params = ngram.train(config, corpus.train.all_tokens, corpus.train.offsets)
    logp = ngram.score(params, config, held.all_tokens, held.offsets)
    predicted = np.ones(len(logp), bool)
    predicted[held.offsets[:-1].astype(np.int64)] = False
    sizes = tokenizer.byte_lengths[held.all_tokens]
    return float(-logp[predicted].sum() / log(2) / sizes[predicted].sum())


def _last_sample(folder: Path) -> Path | None:
    return max((folder / "samples").glob("*.txt"), key=lambda path: int(path.stem), default=None)


def _last_validation(metrics: Path) -> dict:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.get("kind") == "valid"][-1]

"""Extraction: what a model goes on with after the beginnings of its training text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxgen.data.copies import CopyIndex
from jaxgen.text.generate import generate
from jaxgen.text.loaded_model import LoadedModel

NEAR = 0.5  # of the n-grams of a text that one passage holds: a near-copy
GRAM = 4  # tokens of an n-gram
SHOWN = 5  # texts that are shown
ROWS = 32  # prompts at once


def extract(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    index: CopyIndex,
    *,
    prefix: int,
    length: int,
) -> dict[str, Any]:
    """Return how much of the training text comes out, after the first `prefix` tokens of each row.

    Greedy continuations of `length` tokens. Verbatim ones are the row's own; a copy may be of any
    document, its longest part is counted in tokens; a near-copy shares half of its 4-grams with one
    passage. Rows that are too short are left out.
    """
    rows = [list(row[: prefix + length]) for row in rows if len(row) >= prefix + length]
    if not rows:
        return {"prompts": 0}
    prompts = np.asarray([row[:prefix] for row in rows], np.int32)
    run = jax.jit(
        lambda params, prompt: generate(
            params, model.config, prompt, jax.random.key(0), length=length
        )
    )
    texts: list[list[int]] = []
    for begin in range(0, len(rows), ROWS):
        batch = np.resize(prompts[begin : begin + ROWS], (ROWS, prefix))
        texts += np.asarray(run(model.params, batch)).tolist()[: len(rows) - begin]
    every = [_compare(text, row[prefix:], index) for text, row in zip(texts, rows, strict=True)]
    decode = model.tokenizer.decode
    best = sorted(range(len(rows)), key=lambda i: -every[i]["longest_copy"])[:SHOWN]
    return {
        "prompts": len(rows),
        "prefix": prefix,
        "length": length,
        "verbatim": sum(one["verbatim"] for one in every) / len(rows),
        "near_copies": sum(one["shared"] >= NEAR for one in every) / len(rows),
        "mean_copy": float(np.mean([one["longest_copy"] for one in every])),
        "longest_copy": max(one["longest_copy"] for one in every),
        "examples": [
            {"prompt": decode(rows[i][:prefix]), "text": decode(texts[i]), **every[i]} for i in best
        ],
    }


def _compare(text: list[int], own: list[int], index: CopyIndex) -> dict[str, Any]:
    longest, near = index.longest(text), index.nearest(text, width=GRAM, number=1)
    return {
        "verbatim": text == own,
        "longest_copy": 0 if longest is None else longest.length,
        "shared": round(near[0].shared, 4) if near else 0.0,
    }

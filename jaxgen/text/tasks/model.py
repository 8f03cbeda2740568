"""A model with all that its tasks need, and batches of texts of about one length."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import settings_yaml
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.text.model import load, tokenizer_of
from jaxgen.tokens import Tokenizer

SHORTEST = 16  # the smallest width; widths double, so few shapes are ever compiled


@dataclass(frozen=True)
class Model:
    """A loaded model. start: the id that its decoder begins with; labels: of its classes."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    start: int | None = None
    labels: tuple[str, ...] = ()

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text between bos and eos, cut to the context from its end."""
        special = self.tokenizer.special
        before, after = ([] if i is None else [i] for i in (special.bos, special.eos))
        room = self.config.context - len(before) - len(after)
        return [*before, *self.tokenizer.encode(text)[:room], *after]


def open_model(folder: str | os.PathLike, *, step: int | None = None) -> Model:
    """Return the model of a run, a saved folder or a Hugging Face folder, as `jaxgen.load` does.

    step: a certain checkpoint of a run.
    """
    path = Path(folder)
    config, params = load(path, step=step)
    start, labels = _of_run(path)
    tokenizer = tokenizer_of(path)
    if start is None:
        start = tokenizer.special.bos
    return Model(config, params, tokenizer, start, labels)


def _of_run(path: Path) -> tuple[int | None, tuple[str, ...]]:
    """Return (start, labels) from what a run, or a Hugging Face folder, says of them."""
    if (path / "config.yaml").exists():
        objective = settings_yaml.read(path / "config.yaml").get("objective") or {}
        return objective.get("start"), tuple(objective.get("labels") or ())
    about: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (path / name).exists():
            about |= json.loads((path / name).read_bytes())
    names = about.get("id2label") or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    return about.get("decoder_start_token_id"), labels


def by_length(
    rows: Sequence[Sequence[int]], batch: int, most: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield (numbers of the rows, tokens [batch, T], segments [batch, T]), long rows together.

    T is 16, 32, ... up to `most`; the last batch is filled up with rows of padding, so that each
    width is compiled once. Raises ConfigError for a batch below 1.
    """
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for begin in range(0, len(order), batch):
        numbers = order[begin : begin + batch]
        width = SHORTEST
        while width < len(rows[numbers[-1]]):
            width *= 2
        tokens = np.zeros((batch, min(width, most)), np.int32)
        segments = np.zeros_like(tokens)
        for place, number in enumerate(numbers):
            tokens[place, : len(rows[number])] = rows[number]
            segments[place, : len(rows[number])] = 1
        segments[len(numbers) :, 0] = 1  # of nothing no mean can be taken
        yield numbers, tokens, segments

"""A model with all that its tasks need, and batches of texts of about one length."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.generation_config import GenerationConfig, read_generation_config
from jaxgen.pretrained.hub_read import is_hub
from jaxgen.pretrained.model import load
from jaxgen.text import follow
from jaxgen.tokens import Tokenizer

SHORTEST = 16  # the smallest width; widths double, so few shapes are ever compiled

Overflow = Literal["refuse", "cut"]
Progress = Callable[[int, int], None]  # called with (texts done, texts in all)


@dataclass(frozen=True)
class Model:
    """A loaded model. start: the id that its decoder begins with; labels: of its classes."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    start: int | None = None
    labels: tuple[str, ...] = ()
    generation_config: GenerationConfig = GenerationConfig()
    home: Path | None = None

    @property
    def stop(self) -> tuple[int, ...]:
        """Return the ids that end what it writes."""
        return follow.stops(self.generation_config, self.tokenizer.special.eos)

    @cached_property
    def ready(self) -> Any:
        """Return the parameters as decoding reads them fastest (`serving.ready`), made once."""
        return serving.ready(self.params, self.config)

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """Return the ids before and after a text that is read.

        Of a Hugging Face folder those that its own tokenizer puts there; else bos and eos, as a
        run lays its documents.
        """
        special, home = self.tokenizer.special, self.home
        hub = home is not None and is_hub(home)
        own = getattr(self.tokenizer, "around", None)
        if hub and own is not None:
            return own()
        before, after = ([] if i is None else [i] for i in (special.bos, special.eos))
        # transformers' sentencepiece tokenizers end texts for encoders alone.
        return before, [] if hub and self.config.topology == "decoder" else after

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, with those around it."""
        before, after = self.around
        return [*before, *self.tokenizer.encode(text), *after]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first that ends it."""
        kept = []
        for token in ids:
            if token in self.stop:
                break
            if 0 <= token < self.tokenizer.vocab_size:
                kept.append(token)
        return self.tokenizer.decode(kept)


def open_model(folder: str | os.PathLike, *, step: int | None = None) -> Model:
    """Return the model of a run, a saved folder or a Hugging Face folder, as `jaxgen.load` does.

    step: a certain checkpoint of a run. What the folder says of generation and is not followed
    here is a warning.
    """
    path = Path(folder)
    config, params = load(path, step=step)
    usage, lost = read_generation_config(path)
    if lost:
        warnings.warn(f"{path}: not followed: {', '.join(lost)}", stacklevel=2)
    tokenizer = read_tokenizer(path)
    start = tokenizer.special.bos if usage.start is None else usage.start
    if start is None and config.topology == "encoder_decoder":
        start = usage.bos
    labels = usage.labels if len(usage.labels) == config.classes else ()
    return Model(config, params, tokenizer, start, labels, usage, path)


def rows_of(model: Model, texts: Sequence[str], overflow: Overflow) -> list[list[int]]:
    """Return the ids of each text; one longer than the context is refused, or cut at its end.

    Raises ConfigError for an empty text, and for one that is too long unless overflow is "cut";
    then the number of texts that were cut is a warning.
    """
    if not all(texts):
        raise ConfigError(f"text {list(texts).index('')} is empty; remove it")
    rows, most, cut = [], model.config.context, 0
    for number, text in enumerate(texts):
        row = model.ids(text)
        if len(row) > most:
            if overflow == "refuse":
                raise ConfigError(
                    f"text {number} has {len(row)} tokens, more than context={most}; shorten it, "
                    f"or cut such texts with overflow='cut' (--overflow cut)"
                )
            cut += 1
            end = model.around[1]
            row = [*row[: most - len(end)], *end]
        rows.append(row)
    if cut:
        warnings.warn(f"{cut} of {len(texts)} texts were cut to {most} tokens", stacklevel=3)
    return rows


def wants(model: Model, task: str, **fields: tuple[str, ...]) -> None:
    """Raise ConfigError unless the model's config has one of the values that a task needs."""
    for name, values in fields.items():
        if (value := getattr(model.config, name)) not in values:
            raise ConfigError(f"{task} needs {name}={' or '.join(values)}, but {name}={value}")


def by_length(
    rows: Sequence[Sequence[int]], batch: int, most: int, progress: Progress | None = None
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
        if progress:
            progress(begin + len(numbers), len(rows))

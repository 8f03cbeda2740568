"""How well a finished or half-finished run predicts one of its splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxgen import data
from jaxgen.errors import ConfigError, DataError
from jaxgen.pretrained.model import load_step
from jaxgen.run import inputs, objective
from jaxgen.run.folder import TOKENIZER, changed_settings
from jaxgen.store.steps import Step
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train.validate import validate

Split = Literal["train", "valid", "test"]


def evaluate(
    folder: Path,
    assignments: Sequence[str] = (),
    *,
    split: Split,
    cache: Path,
    step: Step = None,
) -> list[tuple[str, str]]:
    """Return (name, value) rows: loss, perplexity and bits per byte of the whole split.

    assignments: "data.key=value", for text that has moved, or other text. step: which checkpoint,
    as for `jaxgen.load`. Raises ConfigError if the folder is no run, CheckpointError if no
    checkpoint of it is sound, DataError if the split is empty, or the text is no more what the run
    was trained on though no other was asked for.
    """
    for word in assignments:
        if not word.startswith("data."):
            raise ConfigError(f"{word}: of a run's settings eval may change those of data.* only")
    settings = changed_settings(folder, assignments)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    config, params, number = load_step(folder, step)
    corpus = inputs.prepare(settings, tokenizer, cache, folder=folder)
    changed = inputs.changed_text(folder, corpus)
    if changed and not assignments:
        raise DataError(changed)
    shard = getattr(corpus, split)
    if not shard.documents:
        raise DataError(
            f"{folder} keeps no {split} text (data.{split}_fraction, data.{split}_files): give "
            f"another --split, or other text with data.files=[...]"
        )
    rows = data.in_order(
        shard,
        context=config.context,
        batch=settings.train.batch,
        objective=objective.make(settings.objective, tokenizer, config.topology),
    )
    found = validate(params, config, rows, tokenizer.byte_lengths)
    rows = [
        ("run", str(folder)),
        ("checkpoint", f"step {number}"),
        ("split", split if not changed else f"{split}, of other text than the run was trained on"),
    ]
    if config.classes is not None:
        return [
            *rows,
            ("texts", f"{found['tokens']:,.0f}"),
            ("loss", f"{found['loss']:.4f} nats per text"),
            ("accuracy", f"{found['accuracy']:.4f}"),
        ]
    return [
        *rows,
        ("tokens", f"{found['tokens']:,.0f}"),
        ("loss", f"{found['loss']:.4f} nats per token"),
        ("perplexity", f"{found['perplexity']:.3f}"),
        ("bits per byte", f"{found['bits_per_byte']:.4f}"),
    ]

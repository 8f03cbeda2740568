"""How well a finished or half-finished run predicts one of its splits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jaxgen import data
from jaxgen.pretrained.model import load
from jaxgen.run import inputs, objective
from jaxgen.run.folder import CHECKPOINTS, TOKENIZER, existing_settings
from jaxgen.store import Checkpoints
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train.validate import validate

Split = Literal["train", "valid", "test"]


def evaluate(folder: Path, *, split: Split, cache: Path) -> list[tuple[str, str]]:
    """Return (name, value) rows: loss, perplexity and bits per byte of the whole split.

    Raises ConfigError if the folder is no run, CheckpointError if no checkpoint of it is sound,
    DataError if the corpus is no more what the run was trained on or the split is empty.
    """
    settings = existing_settings(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    step = Checkpoints(folder / CHECKPOINTS, keep_last=1, keep_best=0, fingerprints={}).steps()[-1:]
    config, params = load(folder)
    corpus = inputs.prepare(settings, tokenizer, cache)
    rows = data.in_order(
        getattr(corpus, split),
        context=config.context,
        batch=settings.train.batch,
        objective=objective.make(settings.objective, tokenizer, config.topology),
    )
    found = validate(params, config, rows, tokenizer.byte_lengths)
    rows = [
        ("run", str(folder)),
        ("checkpoint", f"step {step[0] if step else '?'}"),
        ("split", split),
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

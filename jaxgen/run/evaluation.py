"""How well a model predicts a text: a split of its run's own, or any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxgen import data
from jaxgen import settings as sets
from jaxgen.config import ModelConfig
from jaxgen.data.objectives.settings import PREFERENCES
from jaxgen.data.pack import Batch
from jaxgen.data.rows import Maker, overlapping
from jaxgen.errors import ConfigError, DataError, UserError
from jaxgen.knowledge import memory
from jaxgen.ops.adapted import num_virtual
from jaxgen.pretrained.adapted import Words, attached, words_of
from jaxgen.pretrained.assets import source_note
from jaxgen.pretrained.model import load, load_step, read_config
from jaxgen.run import inputs, objective
from jaxgen.run.folder import CHECKPOINTS, LOCK, TOKENIZER, changed_settings
from jaxgen.run.job import Run
from jaxgen.run.progress import bar
from jaxgen.run.reference import reference_of
from jaxgen.run.settings import Settings, build_settings, resolve
from jaxgen.store.steps import Step
from jaxgen.text.batches import SHORTEST, batch_size, bucket
from jaxgen.tokens import Tokenizer
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train.validate import validate, validate_loss

Split = Literal["train", "valid", "test"]
SPLITTING = ("data.split", "data.valid_", "data.test_")
WHOLE = {"valid_fraction": 0.0, "test_fraction": 0.0, "valid_files": (), "test_files": ()}
# Of a model that is no run: rows as long as most text needs, and what its heads have learned.
CONTEXT, BATCH = 2048, 8
OBJECTIVES = {"mlm": "masked", "classes": "classes"}


class _Model(NamedTuple):
    settings: Settings
    tokenizer: Tokenizer
    config: ModelConfig
    params: Any
    rows: list[tuple[str, str]]  # what it is


def evaluate(
    folder: Path,
    assignments: Sequence[str] = (),
    *,
    split: Split | None = None,
    stride: int | None = None,
    cache: Path,
    step: Step = None,
    adapter: Words = (),
    knn: Path | None = None,
) -> list[tuple[str, str]]:
    """Return (name, value) rows: loss, perplexity and bits per byte of a text.

    Of a classifier loss and accuracy; of preferences the loss, how often the chosen text is
    preferred, and the rewards; of a policy rewards and exact answers.

    folder: a run, or any model with a tokenizer. assignments: "data.key=value", for text that has
    moved, or other text. split: of the run's own text, valid; of other text, all of it: None.
    stride: rows begin so many tokens after another, and each token is predicted from at least
    context - stride before it, in the place of as few as none. step: which checkpoint, as for
    `jaxgen.load`, and adapter likewise. knn: folder of the hidden states of the training text, made
    if it is not there; temperature and weight of kNN-LM are chosen on the validation text.

    Raises ConfigError if the folder is no model or no text is named, CheckpointError if no
    checkpoint of it is sound, DataError if the split is empty, or the text is no more what the run
    was trained on though no other was asked for.
    """
    for word in assignments:
        if not word.startswith("data."):
            raise ConfigError(f"{word}: of a run's settings eval may change those of data.* only")
    is_run = (folder / CHECKPOINTS).is_dir() or (folder / LOCK).exists()
    model = (_of_run if is_run else _of_model)(folder, assignments, step)
    _check_knn(knn, model, own_text=is_run and not _names_text(assignments))
    model = _with_adapters(model, folder, words_of(adapter))
    corpus, part, description = _text(folder, model, assignments, split, cache, is_run=is_run)
    shard = getattr(corpus, part)
    if not shard.documents:
        raise DataError(
            f"{folder} keeps no {part} text (data.{part}_fraction, data.{part}_files): give "
            f"another --split, or other text with data.files=[...]"
        )
    settings = model.settings
    batches = _in_order(model, shard, stride)
    rows = [*model.rows, ("text", description)]
    run = Run(settings, folder, model.tokenizer, corpus, devices=(jax.devices()[0],))
    if settings.objective.name in PREFERENCES:
        return [*rows, *_preferences(run, model.params, batches, part)]
    if run.is_policy:
        return [*rows, *_policy(run, model.params, batches, part)]
    if knn is not None:
        return [*rows, *_with_memory(model, corpus, part, knn, stride)]
    return [*rows, *_measured(model, batches, stride)]


def _measured(model: _Model, batches: Iterator[Batch], stride: int | None) -> list[tuple[str, str]]:
    """Return what a model of language or of classes makes of a text."""
    metrics = validate(model.params, model.config, _fitted(batches), model.tokenizer.byte_lengths)
    if model.config.classes is not None:
        return [
            ("texts", f"{metrics['tokens']:,.0f}"),
            ("loss", f"{metrics['loss']:.4f} nats per text"),
            ("accuracy", f"{metrics['accuracy']:.4f}"),
        ]
    windows = "" if stride is None else f", a window each {stride}"
    return [
        ("context", f"{_context(model)} tokens{windows}"),
        ("tokens", f"{metrics['tokens']:,.0f}"),
        ("loss", f"{metrics['loss']:.4f} nats per token"),
        ("perplexity", f"{metrics['perplexity']:.3f}"),
        ("bits per byte", f"{metrics['bits_per_byte']:.4f}"),
    ]


def _context(model: _Model) -> int:
    return model.settings.model.context - num_virtual(model.params)


def _in_order(model: _Model, shard: Any, stride: int | None) -> Iterator[Batch]:
    """Yield the batches of a text, in its order."""
    settings = model.settings
    return data.in_order(
        shard,
        context=_context(model),
        batch=settings.train.batch,
        objective=_maker(settings, model.tokenizer, stride),
    )


def _with_adapters(model: _Model, folder: Path, words: Sequence[Any]) -> _Model:
    if not words:
        return model
    params = attached(model.config, model.params, folder, words)
    row = ("adapter", ", ".join(f"{word.folder}={word.scale:g}" for word in words))
    return model._replace(params=params, rows=[*model.rows, row])


def _check_knn(knn: Path | None, model: _Model, *, own_text: bool) -> None:
    if knn is not None and not (own_text and model.settings.objective.name == "causal"):
        raise ConfigError(
            f"--knn {knn} needs a run that predicts next tokens of its own text; leave it out"
        )


def _with_memory(
    model: _Model, corpus: data.Corpus, split: Split, home: Path, stride: int | None
) -> Iterator[tuple[str, str]]:
    """Yield what kNN-LM (Khandelwal et al. 2020) adds to a model, of a memory in `home`."""
    if not home.exists():
        text = _in_order(model, corpus.train, stride)
        memory.build_memory(model.params, model.config, text, home)
    opened = memory.open_memory(home, model.params, model.config)

    def look_up(name: Split) -> memory.Evidence:
        text = _in_order(model, getattr(corpus, name), stride)
        return memory.look_up(opened, model.params, model.config, text)

    with bar(f"looking up {split}"):
        valid = look_up("valid")
        measured = valid if split == "valid" else look_up(split)
    temperature, weight = memory.choose(valid)
    size = int(model.tokenizer.byte_lengths[measured.targets].sum())
    yield "memory", f"{len(opened.tokens):,} states in {home}"
    yield "knn", f"weight {weight:g}, temperature {temperature:.4g}, chosen on valid"
    yield "tokens", f"{len(measured.targets):,}"
    for name, chosen in (("without knn", 0.0), ("with knn", weight)):
        nats = -measured.mixed(temperature, chosen)
        bits = float(nats.sum()) / np.log(2) / size
        yield f"loss {name}", f"{nats.mean():.4f} nats per token"
        yield f"bits per byte {name}", f"{bits:.4f}"


def _preferences(
    run: Run, params: Any, batches: Iterator[Batch], split: Split
) -> Iterator[tuple[str, str]]:
    """Yield what a run of preferences is measured by."""
    if run.reads_reference:
        batches = map(reference_of(run, split).add, batches)
    reference, missing = None, None
    if run.measures_kl:
        try:
            reference = run.reference_params
        except UserError as error:  # what training began with is no more there
            missing = error
    measured = validate_loss(run.judge(reference), params, batches)
    paired = run.settings.objective.name != "feedback"
    count = measured.pop("tokens")
    yield ("pairs" if paired else "completions"), f"{count:,.0f}"
    yield "loss", f"{measured.pop('loss'):.4f} per {'pair' if paired else 'completion'}"
    for name, value in measured.items():
        unit = f" nats{' per token' * paired}" if name in ("kl", "log_ratio") else ""
        yield name.replace("_", " "), f"{value:.4f}{unit}"
    if missing is not None:
        yield "kl", f"not measured: {missing}"


def _policy(
    run: Run, params: Any, batches: Iterator[Batch], split: Split
) -> Iterator[tuple[str, str]]:
    """Yield what a policy is measured by: the likeliest completion of each prompt."""
    measured = run.rollouts.validate(params, batches, split)
    prompts, length = measured.get("prompts"), measured.get("length")
    yield "prompts" if prompts else "tokens", f"{prompts or measured['tokens']:,.0f}"
    for name in ("reward", "exact", "divergence", "hidden", "attention"):
        if name in measured:
            yield {"exact": "exact answers"}.get(name, name), f"{measured[name]:.4f}"
    if length is not None:
        yield "length", f"{length:.2f} tokens"


def _fitted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches; one that is alone only as large as the text in it needs.

    More than one have one shape, which is compiled once.
    """
    first, second = next(batches, None), next(batches, None)
    if first is None:
        return
    if second is not None:
        yield from (first, second)
        yield from batches
        return
    real = first["segments"] > 0 if "segments" in first and "source" not in first else None
    if real is None or not real.any():
        yield first
        return
    rows = batch_size(int(np.flatnonzero(real.any(axis=1))[-1]) + 1)
    width = bucket(int(np.flatnonzero(real.any(axis=0))[-1]) + 1, SHORTEST)
    wide = real.shape[1]
    cut = {name: x[:rows] for name, x in first.items()}
    yield {n: x[:, :width] if x.shape[1:2] == (wide,) else x for n, x in cut.items()}


def _of_run(folder: Path, assignments: Sequence[str], step: Step) -> _Model:
    settings = changed_settings(folder, assignments)
    config, params, number = load_step(folder, step)
    rows = [("run", str(folder)), ("checkpoint", f"step {number}")]
    return _Model(settings, load_tokenizer(folder / TOKENIZER), config, params, rows)


def _of_model(folder: Path, assignments: Sequence[str], step: Step) -> _Model:
    if not _names_text(assignments):
        raise ConfigError(
            f"{folder}{source_note(folder)} is no run, so it has no text of its own; give "
            f"data.files=..."
        )
    config = read_config(folder)
    name = OBJECTIVES.get(config.head, "causal")
    if config.topology == "encoder_decoder":
        name = "pairs"
    mapping = {"init_from": str(folder), "objective": {"name": name}, "train": {"batch": BATCH}}
    mapping["model"] = {"context": min(config.context, CONTEXT)}
    settings = build_settings(sets.override(mapping, assignments))
    tokenizer = inputs.make_tokenizer(settings)
    config, params = load(folder, step=step)
    return _Model(resolve(settings, tokenizer), tokenizer, config, params, [("model", str(folder))])


def _names_text(assignments: Sequence[str]) -> bool:
    return any(word.startswith(("data.files=", "data.corpus=")) for word in assignments)


def _text(
    folder: Path,
    model: _Model,
    assignments: Sequence[str],
    split: Split | None,
    cache: Path,
    *,
    is_run: bool,
) -> tuple[data.Corpus, Split, str]:
    """Return a corpus, and which part of it is measured, also in words."""
    prepare = partial(inputs.prepare, tokenizer=model.tokenizer, cache=cache, folder=folder)
    is_named = _names_text(assignments)
    part: Split = split or "valid"
    other = "data.corpus" if model.settings.data.corpus else "data.files"
    chosen = split is not None or any(word.startswith(SPLITTING) for word in assignments)
    if is_run:
        try:
            corpus = prepare(model.settings, silent=is_named and not chosen)
            changed = inputs.changed_text(folder, corpus)
        except DataError as error:  # too little text for the run's split, perhaps
            if chosen or not is_named:
                raise
            corpus, changed = None, str(error)
        if changed and not is_named:
            raise DataError(changed)
        if corpus is not None and (chosen or not changed):
            return corpus, part, f"{part}, of {other}" if changed else part
    elif chosen:
        return prepare(model.settings), part, f"{part}, of {other}"
    whole = replace(model.settings.data, **WHOLE)
    return prepare(replace(model.settings, data=whole)), "train", f"all of {other}"


def _maker(settings: Settings, tokenizer: Tokenizer, stride: int | None) -> Maker:
    if stride is None:
        return objective.make(settings.objective, tokenizer, settings.model.topology)
    if settings.objective.name != "causal":
        raise ConfigError(
            f"stride={stride} is for a model of the next token, but objective.name="
            f"{settings.objective.name}; leave it out"
        )
    if not 1 <= stride <= settings.row_length:
        raise ConfigError(f"stride={stride} must be from 1 to the context of {settings.row_length}")
    return partial(overlapping, stride=stride)

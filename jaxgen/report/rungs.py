"""What a rung of the ladder costs and gives: memory, speed, likelihood, and the report's axes."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.compress import layerwise
from jaxgen.config import ModelConfig
from jaxgen.data.parallel import watch_parent
from jaxgen.data.shard import ShardWriter, TokenShard, open_shard
from jaxgen.errors import ConfigError
from jaxgen.measure import bootstrap
from jaxgen.measure.speed import seconds
from jaxgen.models import api, serving
from jaxgen.ops.cpu import allocator
from jaxgen.pretrained.model import WEIGHTS, load
from jaxgen.report import generators
from jaxgen.report.collect import Figures, Plan, Text, measure, measure_texts, windows
from jaxgen.store.steps import Step
from jaxgen.text import tasks
from jaxgen.text.generate import generate
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.train.losses import causal_loss

Folder = tuple[Path, Step]
BATCHES = (1, 8)  # rows that are decoded at once
PROMPT, REPEATS = 8, 3


def fitting(config: ModelConfig, length: int, new_tokens: int) -> tuple[int, int]:
    """Return both, or what a row within a model's context holds; ConfigError if that is nothing."""
    length = min(length, config.context)
    if length < PROMPT + 2:
        name = "--length" if length < config.context else "context of the model"
        raise ConfigError(
            f"{name}={length} has no room for a prompt of {PROMPT} tokens and two new ones; give "
            f"a longer one"
        )
    return length, min(new_tokens, length - PROMPT)


@contextmanager
def as_text(model: LoadedModel, rows: np.ndarray) -> Iterator[Path]:
    """Yield the file of a shard whose documents are these rows of ids, while the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.tokens"
        known = {"vocab_size": model.config.V, "tokenizer": model.tokenizer.fingerprint}
        writer = ShardWriter(path, **known)
        size = int(model.tokenizer.byte_lengths[rows].sum())
        writer.add(rows.reshape(-1), [rows.shape[1]] * len(rows), size)
        writer.close()
        yield path


def measure_folder(
    folder: Path, step: Step, shard: Path, new_tokens: int, judge: Folder
) -> dict[str, Any]:
    """Return what a model takes and gives, measured in a process of its own.

    Args:
        folder: of the model.
        step: which checkpoint of a run.
        shard: rows of ids to predict, of `as_text`.
        new_tokens: how many are decoded for each figure of speed, and to each prompt.
        judge: folder and step of the model whose vectors compare texts.

    Returns:
        resident (bytes more than before it was loaded, once it decodes), speed (tokens a second by
        batch), nll (nats of each row), and axes, the figures of `jaxgen report`, but for what is
        copied from a training text: there is none at hand.
    """
    context = multiprocessing.get_context("spawn")
    # However this process ends, that one does too.
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=watch_parent, initargs=(os.getpid(),)
    ) as process:
        return process.submit(_measure, folder, step, shard, new_tokens, judge).result()


def _measure(
    folder: Path, step: Step, shard: Path, new_tokens: int, judge: Folder
) -> dict[str, Any]:
    held = open_shard(shard)
    rows = held.all_tokens.astype(np.int32).reshape(held.documents, -1)
    jnp.zeros(1).block_until_ready()
    before = allocator.resident()
    config, params = load(folder, step=step)
    nats = jax.jit(lambda params, batch: causal_loss(params, config, batch).nll)
    nll = [_nll(nats, params, part) for part in layerwise.batches(rows)]
    params = serving.ready(params, config)
    key, speed = jax.random.key(0), {}
    program = jax.jit(
        lambda params, prompt: generate(params, config, prompt, key, length=new_tokens)
    )
    for batch in BATCHES:
        prompt = jnp.asarray(rows[:1, :PROMPT]).repeat(batch, 0)

        def decode(prompt: Any = prompt) -> Any:
            return program(params, prompt)

        took = float(np.min(seconds(decode, REPEATS)))
        speed[str(batch)] = batch * new_tokens / took
    allocator.give_back()  # what compiling has freed
    more = allocator.resident() - before
    figures = _axes(generators.transformer("", config, params), held, new_tokens, judge)
    return {"resident": more, "speed": speed, "nll": np.concatenate(nll).tolist(), "axes": figures}


def _axes(one: Any, held: TokenShard, new_tokens: int, judge: Folder) -> dict[str, Any]:
    plan, text = _plan(new_tokens), _text(open_model(judge[0], step=judge[1]), held)
    return _as_json(measure(one, text, plan, *windows(text, plan))[0])


def true_axes(model: LoadedModel, shard: Path, new_tokens: int) -> dict[str, Any]:
    """Return the figures of the text itself, which those of the rungs are near or far from."""
    plan, text = _plan(new_tokens), _text(model, open_shard(shard))
    true = windows(text, plan)[1]
    return _as_json(measure_texts(true[None], true, text, plan, reference=True))


def _plan(new_tokens: int) -> Plan:
    return Plan(prompt_tokens=PROMPT, new_tokens=new_tokens, seeds=2)


def _text(model: LoadedModel, held: TokenShard) -> Text:
    length = len(held.tokens) // held.documents
    return Text(held, held, model.tokenizer, length, partial(tasks.embed, model))


def _as_json(figures: Figures) -> dict[str, Any]:
    """Return figures as JSON-able data; what is copied of the held-out text itself says nothing."""
    return {name: one._asdict() for name, one in figures.items() if name != "copied_8"}


def _nll(nats: Callable[..., jax.Array], params: api.Params, rows: np.ndarray) -> np.ndarray:
    """Return the nats of each row's tokens after its first."""
    filled = np.pad(rows, ((0, layerwise.BATCH - len(rows)), (0, 0)))
    batch = {"tokens": filled[:, :-1], "targets": filled[:, 1:]}
    return np.asarray(nats(params, batch))[: len(rows)]


def compared(nll: Any, baseline: Any, rows: np.ndarray, byte_lengths: np.ndarray) -> dict[str, Any]:
    """Return bits per byte, and the change of perplexity (in parts) against another model.

    baseline: the nats of the same rows by that other one.
    Both with intervals by resampling rows; the change is of pairs, so that it is known far better
    than the difference of two intervals says.
    """
    nll, baseline = np.asarray(nll), np.asarray(baseline)
    size = byte_lengths[rows[:, 1:]].sum(axis=1).astype(float)
    count = np.full(len(rows), float(rows.shape[1] - 1))
    bits = bootstrap.ratio(nll / np.log(2), size, seed=0)
    change = bootstrap.ratio(nll - baseline, count, seed=0)
    grown = [None if x is None else float(np.expm1(x)) for x in change]
    return {
        "bits_per_byte": bits._asdict(),
        "perplexity": dict(zip(bits._fields, grown, strict=True)),
    }


def stored(folder: Path, step: Step) -> int:
    """Return the bytes of a model's parameters where they are stored: its file, or as arrays.

    Of a run, whose checkpoints hold the optimizer as well, and of other folders the arrays.
    """
    if (folder / WEIGHTS).is_file() and step is None:
        return (folder / WEIGHTS).stat().st_size
    return sum(leaf.nbytes for leaf in jax.tree.leaves(load(folder, step=step)[1]))

"""What a model's folder costs and gives: memory, speed, and how well it predicts some rows."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.compress import layerwise
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.measure import bootstrap
from jaxgen.measure.speed import seconds
from jaxgen.models import api, serving
from jaxgen.ops.cpu import allocator
from jaxgen.pretrained.model import WEIGHTS, load
from jaxgen.store.steps import Step
from jaxgen.text.generate import generate
from jaxgen.train.losses import causal_loss

BATCHES = (1, 8)  # rows that are decoded at once
PROMPT, REPEATS = 8, 3


def fitting(config: ModelConfig, length: int, new_tokens: int) -> tuple[int, int]:
    """Return both, or what a model's context has room for; ConfigError if that is nothing."""
    room = config.context - PROMPT
    if room < 1:
        raise ConfigError(
            f"context={config.context} of the model has no room for a prompt of {PROMPT} tokens "
            f"and a new one, so its speed can't be measured; give a model with a longer context"
        )
    return min(length, config.context), min(new_tokens, room)


def measure_folder(folder: Path, step: Step, rows: np.ndarray, new_tokens: int) -> dict[str, Any]:
    """Return what a model takes and gives, measured in a process of its own.

    Args:
        folder: of the model.
        step: which checkpoint of a run.
        rows: ids [rows, length] to predict.
        new_tokens: how many are decoded for each figure of speed.

    Returns:
        resident (bytes more than before it was loaded, once it decodes), speed (tokens a second by
        batch), nll (nats of each row).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_measure, folder, step, rows, new_tokens).result()


def _measure(folder: Path, step: Step, rows: np.ndarray, new_tokens: int) -> dict[str, Any]:
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
    return {"resident": more, "speed": speed, "nll": np.concatenate(nll).tolist()}


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

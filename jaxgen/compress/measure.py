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

from jaxgen.measure import bootstrap
from jaxgen.measure.speed import seconds
from jaxgen.models import api, serving
from jaxgen.ops.cpu import allocator
from jaxgen.pretrained.model import WEIGHTS, load
from jaxgen.store.steps import Step
from jaxgen.text.generate import generate
from jaxgen.train.losses import causal_loss

BATCH = 8  # rows that are predicted at once
BATCHES = (1, 8)  # rows that are decoded at once
PROMPT, REPEATS = 8, 3
STATUS = Path("/proc/self/status")


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    rows = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) * 1024


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
    before = resident()
    config, params = load(folder, step=step)
    nats = jax.jit(lambda params, batch: causal_loss(params, config, batch).nll)
    nll = [_nll(nats, params, part) for part in _batches(rows)]
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
    return {"resident": resident() - before, "speed": speed, "nll": np.concatenate(nll).tolist()}


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def _nll(nats: Callable[..., jax.Array], params: api.Params, rows: np.ndarray) -> np.ndarray:
    """Return the nats of each row's tokens after its first."""
    filled = np.pad(rows, ((0, BATCH - len(rows)), (0, 0)))
    batch = {"tokens": filled[:, :-1], "targets": filled[:, 1:]}
    return np.asarray(nats(params, batch))[: len(rows)]


def compared(nll: Any, first: Any, rows: np.ndarray, byte_lengths: np.ndarray) -> dict[str, Any]:
    """Return bits per byte, and the change of perplexity (in parts) against another model.

    Both with intervals by resampling rows; the change is of pairs, so that it is known far better
    than the difference of two intervals says.
    """
    nll, first = np.asarray(nll), np.asarray(first)
    size = byte_lengths[rows[:, 1:]].sum(axis=1).astype(float)
    count = np.full(len(rows), float(rows.shape[1] - 1))
    bits = bootstrap.ratio(nll / np.log(2), size, seed=0)
    change = bootstrap.ratio(nll - first, count, seed=0)
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

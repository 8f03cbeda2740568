"""How well a model predicts text it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import exp, log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.errors import DataError
from jaxgen.ops.losses import is_ignored, unembed
from jaxgen.train.losses import Loss, causal_loss, read


@partial(jax.jit, static_argnames="config")
def _sums(params: Any, config: ModelConfig, batch: dict, widths: jax.Array):
    loss = causal_loss(params, config, batch)
    if config.classes is not None:
        out = read(params, config, batch, None)
        logits = unembed(out.features, out.table, cap=None, dtype=config.compute_dtype)
        right = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["weights"]
        return loss.nll.sum(), loss.weight, right.sum()
    counted = (batch["weights"] != 0) & ~is_ignored(batch["targets"])
    real = widths[batch["targets"]] * counted
    return loss.nll.sum(), loss.weight, real.sum()


def validate_loss(
    loss: Callable[[Any, dict], Loss], params: Any, batches: Iterable[dict]
) -> dict[str, float]:
    """Return the mean loss over all `batches`, its metrics, and tokens: the sum of its weights.

    loss: (params, batch) -> Loss, compiled. Raises DataError if nothing is judged.
    """
    total, weight, sums = 0.0, 0.0, dict[str, float]()
    for batch in batches:
        found = jax.device_get(loss(params, batch))
        total, weight = total + float(found.total), weight + float(found.weight)
        for name, value in found.metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value) * float(found.weight)
    if not weight:
        raise DataError("the split has nothing to judge; give it more")
    means = {name: value / weight for name, value in sums.items()}
    return {"loss": total / weight, **means, "tokens": weight}


def validate(
    params: Any, config: ModelConfig, batches: Iterable[dict], byte_lengths: np.ndarray
) -> dict[str, float]:
    """Return loss (nats per token), perplexity, bits_per_byte and tokens over all `batches`.

    Of a classifier: loss (nats per text), accuracy and tokens (here: texts).
    byte_lengths: [V] UTF-8 bytes of the text that each id stands for, so that models with
    different tokenizers compare. Sums are kept in Python floats, so the result depends on
    neither batch size nor padding beyond rounding. Raises DataError if nothing is predicted.
    """
    widths = jnp.asarray(byte_lengths, jnp.int32)
    nll, tokens, size = 0.0, 0.0, 0
    for batch in batches:
        batch = {name: value for name, value in batch.items() if name != "index"}
        parts = jax.device_get(_sums(params, config, batch, widths))
        nll, tokens, size = nll + float(parts[0]), tokens + float(parts[1]), size + int(parts[2])
    if not tokens:
        raise DataError("the split has no token to predict; give it more text")
    mean = nll / tokens
    if config.classes is not None:
        return {"loss": mean, "accuracy": size / tokens, "tokens": tokens}
    return {
        "loss": mean,
        "perplexity": exp(mean) if mean < 700 else float("inf"),
        "bits_per_byte": nll / log(2) / size if size else float("nan"),
        "tokens": tokens,
    }


class StoppedError(Exception):
    """A stop was requested in the middle of a validation."""


def until(stop: Callable[[], bool], rows: Iterable[Any]) -> Iterator[Any]:
    """Yield the rows; StoppedError once a stop is requested."""
    for row in rows:
        if stop():
            raise StoppedError
        yield row

"""Causes inside a model: activations of another prompt put in, or taken out, one unit at a time."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.explain.layers import check_attention, stack_taps
from jaxgen.models import api
from jaxgen.nn.stack import taps_path
from jaxgen.ops.memory import Memory

Part = Literal["out", "attn_out", "cross_out", "feed_out", "attn/heads", "cross/heads"]
By = Literal["position", "head"]
Instead = Literal["zero", "mean"]
Ids = Integer[Array | np.ndarray, "T"]


class Effects(NamedTuple):
    """Log-probabilities of a target with one unit changed at a time.

    changed: [L, U] of each layer's units, its T positions or N heads; before: unchanged; after: of
    the other prompt, or with all units changed.
    """

    changed: Float[Array, "Layers U"]
    before: Float[Array, ""]
    after: Float[Array, ""]

    @property
    def share(self) -> Float[Array, "Layers U"]:
        """Return how much of the way from before to after each change goes: 0 none, 1 all."""
        return (self.changed - self.before) / (self.after - self.before)


def patch(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    other: Integer[Array | np.ndarray, "S"],
    target: int,
    *,
    part: Part = "out",
    by: By = "position",
    memory: Memory | None = None,
) -> Effects:
    """Return what the next token's log-probability becomes with activations of another prompt.

    Args:
        params, config: of the model, which predicts the token after the last one.
        tokens: ids [T] of the prompt that is run.
        other: ids [T] of the prompt whose activations are put in; as many.
        target: id whose log-probability is followed.
        part: "out", the residual stream behind a layer, what a sublayer adds to it ("attn_out",
            "feed_out", "cross_out"), or its heads ("attn/heads", "cross/heads").
        by: "position": one position of one layer at a time; "head": one head, at all positions.
        memory: of an encoder-decoder, for both prompts.

    Returns:
        Effects; `before` is of tokens, `after` of other. Vig et al. 2020; Meng et al. 2022. Raises
        ConfigError for prompts of different lengths, or a part without heads.
    """
    if len(tokens) != len(other) or not len(tokens):
        raise ConfigError(
            f"the prompts have {len(tokens)} and {len(other)} tokens; patching needs as many, and "
            f"at least one, so that each has a partner"
        )
    rows = jnp.stack([jnp.asarray(tokens, jnp.int32), jnp.asarray(other, jnp.int32)])
    return _effects(params, config, rows, _check(config, target, part, by), memory, part, by, None)


def ablate(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    target: int,
    *,
    part: Part = "attn/heads",
    by: By = "head",
    instead: Instead = "zero",
    memory: Memory | None = None,
) -> Effects:
    """Return what the next token's log-probability becomes without each unit, as `patch` does.

    instead: "zero", or the "mean" of the unit over the positions. `after` is with all units changed
    at once.
    """
    if not len(tokens):
        raise ConfigError("tokens is empty; give at least one")
    row = jnp.asarray(tokens, jnp.int32)[None]
    target_id = _check(config, target, part, by)
    return _effects(params, config, row, target_id, memory, part, by, instead)


def _check(config: ModelConfig, target: int, part: Part, by: By) -> Int[Array, ""]:
    if config.head != "lm" or config.topology == "encoder":
        raise ConfigError(f"topology={config.topology}, head={config.head}: there's no next token")
    if (by == "head") != part.endswith("heads"):
        raise ConfigError(f"by={by} with part={part}: heads, and they alone, are taken by head")
    if part.endswith("heads"):
        check_attention(config)
    if not 0 <= target < config.V:
        raise ConfigError(f"target={target} must be an id from 0 to {config.V - 1}")
    return jnp.int32(target)


@partial(jax.jit, static_argnames=("config", "part", "by", "instead"))
def _effects(params, config, rows, target, memory, part, by, instead) -> Effects:
    """rows: [1, T], or [2, T] with the other prompt."""

    def logprob(out: api.Output) -> Array:
        assert out.logits is not None
        return jax.nn.log_softmax(out.logits[:, -1].astype(jnp.float32), axis=-1)[:, target]

    read = jax.tree.map(lambda x: jnp.repeat(x, len(rows), axis=0), memory)
    whole = api.apply(params, config, rows, memory=read, taps=(f"*/{part}",))
    own = stack_taps(whole.taps, config, part)  # [L, B, T, ...]
    there = own[:, 1:] if instead is None else jnp.zeros_like(own)
    if instead == "mean":
        there = jnp.broadcast_to(own.mean(axis=2, keepdims=True), own.shape)
    size = own.shape[3] if by == "head" else own.shape[2]
    paths = {f"{taps_path(config, layer)[0]}/{part}" for layer in range(config.layers)}

    def changed(mask: Bool[Array, "L U"]) -> Array:
        swap = Partial(partial(_swap, by), there, mask)
        options = {"memory": memory, "interventions": dict.fromkeys(sorted(paths), swap)}
        return logprob(api.apply(params, config, rows[:1], **options))[0]

    each = jnp.eye(config.layers * size, dtype=bool).reshape(-1, config.layers, size)
    values = lax.map(changed, each).reshape(config.layers, size)
    ends = logprob(whole)
    after = ends[1] if instead is None else changed(jnp.ones((config.layers, size), bool))
    return Effects(values, ends[0], after)


def _swap(by: By, there: Array, mask: Array, x: Array, layer: Any) -> Array:
    """Return activations [1, T, ...], those of a layer's masked units from elsewhere."""
    taken = mask[layer]
    taken = taken[None, None, :, None] if by == "head" else taken[None]
    return jnp.where(taken.reshape(*taken.shape, *[1] * (x.ndim - taken.ndim)), there[layer], x)


def induction_scores(
    params: api.Params,
    config: ModelConfig,
    key: PRNGKeyArray,
    *,
    length: int = 24,
    batch: int = 4,
) -> Float[Array, "Layers N"]:
    """Return how much each head attends, in a text said twice, to what followed the first time.

    The text is `length` random tokens; the score is the mean probability, 0 to 1 (Olsson et al.
    2022). Raises ConfigError for a text that does not fit, or an encoder.
    """
    check_attention(config)
    if config.topology != "decoder":
        raise ConfigError(f"topology={config.topology}: induction heads are a decoder's")
    if length < 2 or 2 * length > config.longest:
        raise ConfigError(
            f"length={length} must be from 2 to {config.longest // 2}: it's said twice"
        )
    once = jax.random.randint(key, (batch, length), 0, config.V)
    tokens = jnp.concatenate([once, once], axis=1)
    taps = api.apply(params, config, tokens, taps=("*/attn/probs",)).taps
    queries = jnp.arange(length, 2 * length - 1)
    probs = stack_taps(taps, config, "attn/probs")[..., queries, queries - length + 1]
    return probs.mean(axis=(1, 3))


def largest(parts: Float[Array, "Layers U"], number: int) -> list[tuple[int, int, float]]:
    """Return (layer, unit, amount) of the units that move a token most, either way.

    parts: heads or neurons of one logit, as of `explain.direct`.
    """
    values = np.asarray(parts)
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:number]
    places = (np.unravel_index(i, values.shape) for i in order)
    return [(int(layer), int(unit), float(values[layer, unit])) for layer, unit in places]

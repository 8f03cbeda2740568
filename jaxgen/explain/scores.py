"""What is explained: the scores of tokens or classes as a function of input vectors.

A score is called with vectors [B, S, D] in the place of the rows of the token table and returns
[B, R], one number for each of R targets. Attribution knows no more of a model, so any such function
can be explained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxgen import arguments
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.ops.contract import lookup
from jaxgen.ops.losses import unembed
from jaxgen.pytree import register_dataclass

Measure = Literal["logprob", "logit"]
Baseline = Literal["tokens", "mean", "zero"]
DRAWS = 4  # of random tokens, as a baseline
Score = Callable[[Float[Array, "B S D"]], Float[Array, "B R"]]
Ids = Integer[Array | np.ndarray, "T"] | Sequence[int]


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class ModelScore:
    """Logits or log-probabilities of targets, as a function of the vectors of the tokens.

    Of an encoder-decoder the vectors of the source come first, then those of the decoder's tokens.
    states: [R] which hidden state predicts each target; foils: [R] of which the score is
    subtracted, -1: of none.
    """

    params: api.Params
    states: Int[Array, "R"]
    targets: Int[Array, "R"]
    foils: Int[Array, "R"]
    config: ModelConfig = field(metadata={"static": True})
    measure: Measure = field(metadata={"static": True})
    num_source: int = field(default=0, metadata={"static": True})
    start: int | None = field(default=None, metadata={"static": True})

    def __call__(self, embeds: Float[Array, "B S D"]) -> Float[Array, "B R"]:
        """Return the score [B, R] of each target."""
        logits = self._logits(embeds)
        if self.measure == "logprob":
            logits = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(logits, self.targets[None, :, None], axis=-1)[..., 0]
        foils = jnp.maximum(self.foils, 0)[None, :, None]
        other = jnp.take_along_axis(logits, foils, axis=-1)[..., 0]
        return own - jnp.where(self.foils < 0, 0.0, other)

    @property
    def visible(self) -> np.ndarray | None:
        """Return [R, S] which vectors a target depends on; None: all."""
        if self.config.head != "lm" or self.config.topology == "encoder":
            return None
        places = jnp.arange(self.num_source + int(self.states.max()) + 1)
        return np.asarray(places[None] <= self.num_source + self.states[:, None])

    def _logits(self, embeds: Float[Array, "B S D"]) -> Float[Array, "B R V"]:
        config, memory, own = self.config, None, embeds
        if config.topology == "encoder_decoder":
            source, own = embeds[:, : self.num_source], embeds[:, self.num_source :]
            memory = api.encode(self.params, config, inputs_embeds=source)
            if self.start is not None:  # a classifier's decoder reads the source as well
                first = jnp.broadcast_to(
                    embed(self.params, config, [self.start]), (len(embeds), 1, embeds.shape[-1])
                )
                own = jnp.concatenate([first, source[:, :-1]], axis=1)
        out = api.hidden(self.params, config, inputs_embeds=own, memory=memory)
        cap = config.logit_cap if config.head in ("lm", "mlm") else None
        features = out.features if config.head == "classes" else out.features[:, self.states]
        logits = unembed(features, out.table, cap=cap, dtype=config.compute_dtype)
        if config.head == "classes":
            logits = jnp.broadcast_to(logits, (len(logits), len(self.states), logits.shape[-1]))
        return logits.astype(jnp.float32)


def embed(
    params: api.Params, config: ModelConfig, tokens: Ids, *, encoder: bool = False
) -> Float[Array, "S D"]:
    """Return the rows of the token table, of an encoder-decoder's encoder if it has its own."""
    tables = params["embed"]
    if encoder:
        tables = tables | params.get("encoder", {}).get("embed", {})
    return lookup(tables["tokens"], jnp.asarray(tokens, jnp.int32), dtype=config.compute_dtype)


def no_text(
    params: api.Params,
    config: ModelConfig,
    size: int,
    *,
    baseline: Baseline = "tokens",
    num_source: int = 0,
) -> Float[Array, "K S D"]:
    """Return baselines of attribution: vectors that stand for no text in particular.

    Vectors that are all alike are a bad one for a decoder: attention over equal values returns
    them, so that every position computes what the first one alone does, and on the path to a text
    the score jumps.

    Args:
        params, config: of the model.
        size: of the text, S.
        baseline: "tokens" are random ones, the same at each call, K = 4 times; "mean" is the mean
            row of the token table at each position, "zero" are zeros; K = 1.
        num_source: of S, how many an encoder-decoder's encoder reads.
    """
    if baseline == "zero":
        return jnp.zeros((1, size, config.d_model))

    def rows(number: int, encoder: bool) -> Array:
        if baseline == "mean":
            row = embed(params, config, np.arange(config.V), encoder=encoder).mean(axis=0)
            return jnp.broadcast_to(row, (1, number, len(row)))
        ids = np.random.default_rng(0).integers(0, config.V, DRAWS * number)
        return embed(params, config, ids, encoder=encoder).reshape(DRAWS, number, config.d_model)

    return jnp.concatenate([rows(num_source, True), rows(size - num_source, False)], axis=1)


def token_scores(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    positions: Ids | None = None,
    *,
    targets: Ids | None = None,
    foils: Ids | None = None,
    source: Ids | None = None,
    measure: Measure = "logprob",
) -> tuple[ModelScore, Float[Array, "S D"]]:
    """Return (score, vectors) of tokens that a model predicts.

    Args:
        params: of the model.
        config: of the model: a decoder, an encoder-decoder, or an encoder with token logits.
        tokens: ids [T] of prompt and text; of an encoder-decoder what its decoder reads.
        positions: [R] of the tokens to explain, which the tokens before them predict (an encoder
            predicts a token where it stands); from 1, or 0 of an encoder. None: the last one.
        targets: [R] ids that could stand there; None: those that do.
        foils: [R] ids; the score is then the target's less the foil's: why one and not the other.
        source: ids [S] that the encoder of an encoder-decoder reads.
        measure: "logprob", or the "logit" before the softmax.

    Returns:
        The score, and the vectors of the source, if any, and the tokens. Raises ConfigError for a
        position or an id that is none, or a model without token logits.
    """
    if config.head not in ("lm", "mlm"):
        raise ConfigError(f"head={config.head} predicts no token; explain a class: class_scores")
    if (source is not None) != (config.topology == "encoder_decoder"):
        raise ConfigError(
            f"source= with topology={config.topology}: an encoder-decoder, and no other, reads one"
        )
    ids = np.asarray(tokens, np.int32)
    before = config.topology != "encoder"
    places = np.asarray([len(ids) - 1] if positions is None else positions, np.int32)
    if not len(ids) or not len(places):
        raise ConfigError("tokens is empty; give at least one token, and one before it to explain")
    if places.min() < before or places.max() >= len(ids):
        raise ConfigError(
            f"positions={places.tolist()} must be from {int(before)} to {len(ids) - 1}, places of "
            f"the {len(ids)} tokens"
        )
    count, none = len(places), jnp.full(len(places), -1, jnp.int32)
    score = ModelScore(
        params,
        jnp.asarray(places - before),
        _ids("targets", ids[places] if targets is None else targets, count, config.V),
        none if foils is None else _ids("foils", foils, count, config.V),
        config,
        measure,
        0 if source is None else len(source),
    )
    vectors = embed(params, config, ids[: int(places.max()) + 1 - before])
    if source is not None:
        if not len(source):
            raise ConfigError("source is empty; give at least one token")
        vectors = jnp.concatenate([embed(params, config, source, encoder=True), vectors])
    return score, vectors


def class_scores(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    classes: Ids,
    *,
    start: int | None = None,
    measure: Measure = "logprob",
) -> tuple[ModelScore, Float[Array, "S D"]]:
    """Return (score, vectors) of classes [R] that a classifier gives to a text [S].

    start: what the decoder of an encoder-decoder begins with. Raises ConfigError for a model
    without a head of classes, or a class that it does not have.
    """
    if config.head != "classes":
        raise ConfigError(f"head={config.head} gives a text no class; explain a token")
    if not len(tokens):
        raise ConfigError("tokens is empty; give at least one token")
    both = config.topology == "encoder_decoder"
    if both and (start is None or config.towers.tokens != "shared"):
        raise ConfigError(
            f"start={start} with towers.tokens={config.towers.tokens}: a classifier of two towers "
            f"needs the start token, and one table for both"
        )
    chosen = _ids("classes", classes, len(classes), config.classes or 0)
    states = jnp.zeros(len(chosen), jnp.int32)
    score = ModelScore(
        *(params, states, chosen, jnp.full(len(chosen), -1, jnp.int32), config, measure),
        num_source=len(tokens) if both else 0,
        start=start if both else None,
    )
    return score, embed(params, config, tokens, encoder=both)


def _ids(name: str, ids: Any, count: int, size: int) -> Int[Array, "R"]:
    values = np.asarray(ids, np.int64)
    if values.shape != (count,):
        raise ConfigError(f"{name} of shape {list(values.shape)} must be [{count}], one a position")
    if count and (values.min() < 0 or values.max() >= size):
        raise ConfigError(f"{name}={values.tolist()} must be ids from 0 to {size - 1}")
    return jnp.asarray(values, jnp.int32)

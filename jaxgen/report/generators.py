"""Generators behind one door: whatever they are, they are read, scored and decoded alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen import data, tree
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError, nearest
from jaxgen.models import api
from jaxgen.models.classic import hmm, ngram
from jaxgen.ops import keys
from jaxgen.text.generate import model_step, prefill
from jaxgen.tokens import Tokenizer

ORDER = 5  # of the n-gram that everyone means by "the n-gram"
STATES = 64
ROUNDS = 15
PRIOR = 0.01


@dataclass(frozen=True)
class Generator:
    """A trained generator as pure functions of its params.

    prefill: (params, prompt [B, T], lengths [B], capacity) -> (first [B], cache). step: params ->
    decoding step. logits: (params, batch) -> [B, T, V] of a batch of `data.in_order`.
    """

    name: str
    about: str
    params: Any
    prefill: Callable[..., Any]
    step: Callable[..., Any]
    logits: Callable[..., Any]
    context: int | None  # tokens that prompt and continuation may have together; None: any
    train_seconds: float | None = None

    @property
    def parameters(self) -> int:
        """Return how many numbers it is made of."""
        return tree.count(self.params)


def transformer(name: str, config: ModelConfig, params: Any) -> Generator:
    """Return a decoder of ours as a generator."""

    def logits(params: Any, batch: dict[str, Any]) -> Any:
        seen = {name: batch[name] for name in ("segments", "positions")}
        return api.apply(params, config, batch["tokens"], **seen).logits

    return Generator(
        name=name,
        about=f"Transformer, {config.layers} layers of {config.d_model}",
        params=params,
        prefill=lambda params, *rest: prefill(params, config, *rest),
        step=lambda params: model_step(params, config),
        logits=logits,
        context=config.context,
    )


def baseline(kind: str, shard: data.TokenShard, tokenizer: Tokenizer, seed: int) -> Generator:
    """Return a traditional generator of BASELINES, trained on a shard."""
    begin = time.perf_counter()
    made = BASELINES[kind](shard, tokenizer, seed)
    took = time.perf_counter() - begin
    return Generator(**{**vars(made), "train_seconds": took})


def _ngram(shard: data.TokenShard, tokenizer: Tokenizer, seed: int) -> Generator:
    config = ngram_config(tokenizer)
    params = ngram.on_device(ngram.train(config, shard.tokens, shard.offsets))

    def start(batch: int) -> Any:
        # A row of held-out text begins in mid-document, for every generator.
        return jnp.full((batch, config.order - 1), -1, jnp.int32)

    return Generator(
        name="ngram",
        about=f"{config.order}-gram, modified Kneser-Ney",
        params=params,
        prefill=lambda params, prompt, lengths, _: ngram.prefill(params, config, prompt, lengths),
        step=lambda params: ngram.step(params, config),
        logits=partial(_through_steps, lambda params: ngram.step(params, config), start),
        context=None,
    )


def ngram_config(tokenizer: Tokenizer) -> ngram.NGram:
    """Return the sizes of the n-gram baseline for a tokenizer."""
    size, begin = tokenizer.vocab_size, tokenizer.special.bos
    return ngram.NGram(vocab_size=size, order=ORDER, begin=begin)


def _hmm(shard: data.TokenShard, tokenizer: Tokenizer, seed: int) -> Generator:
    width = 128
    rows = -(-len(shard.tokens) // width)
    tokens = np.zeros((rows, width), np.int32)
    tokens.reshape(-1)[: len(shard.tokens)] = shard.tokens
    lengths = np.full(rows, width)
    lengths[-1] = len(shard.tokens) - (rows - 1) * width
    params = hmm.init(STATES, tokenizer.vocab_size, keys.from_seed(seed))
    params, _ = hmm.train(
        params, jnp.asarray(tokens), jnp.asarray(lengths), rounds=ROUNDS, prior=PRIOR, batch=1024
    )

    def read(params: Any, prompt: Any, lengths: Any, capacity: int) -> Any:
        def more(belief, inputs):
            place, token = inputs
            new = hmm.step(params)(token, belief)[1]
            return jnp.where((place < lengths - 1)[:, None], new, belief), None

        places = jnp.arange(prompt.shape[1])
        belief, _ = lax.scan(more, hmm.start(params, prompt.shape[0]), (places, prompt.T))
        return jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0], belief

    return Generator(
        name="hmm",
        about=f"hidden Markov model of {STATES} states",
        params=params,
        prefill=read,
        step=hmm.step,
        logits=partial(_through_steps, hmm.step, partial(hmm.start, params)),
        context=None,
    )


BASELINES: dict[str, Callable[..., Generator]] = {"ngram": _ngram, "hmm": _hmm}


def check(kinds: Sequence[str]) -> None:
    """Raise ConfigError for a baseline that there is not."""
    for kind in kinds:
        if kind not in BASELINES:
            known = ", ".join(BASELINES)
            raise ConfigError(
                f"--baselines: {kind!r} is unknown{nearest(kind, BASELINES)}; there are {known}"
            )


def _through_steps(step: Any, start: Any, params: Any, batch: dict[str, Any]) -> Any:
    """Return the logits [B, T, V] that a decoding step gives along the rows of a batch."""
    run = step(params)

    def more(cache, tokens):
        logits, cache = run(tokens, cache)
        return cache, logits

    _, logits = lax.scan(more, start(batch["tokens"].shape[0]), batch["tokens"].T)
    return logits.transpose(1, 0, 2)


def read_rows(
    generator: Generator, batch: dict[str, Any], known: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (log probability of each target, of the likeliest id, whether they agree), [B, T].

    known: ids of the tokenizer; rows of a table beyond it are no tokens.
    """
    logits = generator.logits(generator.params, batch)[..., :known].astype(jnp.float32)
    logp = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logp, batch["targets"][..., None], axis=-1)[..., 0]
    return own, logp.max(axis=-1), logp.argmax(axis=-1) == batch["targets"]

"""Text in, text out: a loaded model that completes prompts, streamed or in a batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain, chain
from jaxgen.decoding.loop import NOT_FINITE, decode, request_keys
from jaxgen.decoding.shape import temperature, top_k, top_p
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.ops import keys
from jaxgen.text.generate import model_step, prefill
from jaxgen.text.model import load, tokenizer_of
from jaxgen.tokens import Detokenizer, Tokenizer

CHUNK = 8  # tokens between looks at the result: small enough to stream, large enough to be cheap
BUCKET = 32  # the smallest prompt width and cache; both double, so few shapes are ever compiled


def sampler(*, temperature_: float, top_k_: int | None, top_p_: float | None) -> Chain:
    """Return temperature, then top-k, then top-p, in the order of transformers' generate."""
    processors: list[Any] = [temperature(temperature_)]
    if top_k_ is not None:
        processors.append(top_k(top_k_))
    if top_p_ is not None:
        processors.append(top_p(top_p_))
    return chain(*processors)


@dataclass(frozen=True)
class Session:
    """A model with its tokenizer, ready to complete text."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """Return how many tokens a prompt and its completion may have together."""
        return self.config.context

    def encode(self, prompt: str, length: int | None = None) -> tuple[list[int], int]:
        """Return (ids, new tokens to make); ConfigError for an empty or too long prompt.

        length: new tokens wanted; None takes up to 128 of what the context leaves.
        """
        ids = self._ids(prompt)
        room = self.context - len(ids)
        if room < 1:
            raise ConfigError(
                f"prompt has {len(ids)} tokens but context={self.context}, which must hold at "
                f"least one more; shorten the prompt by {1 - room}"
            )
        if length is not None and length > room:
            raise ConfigError(
                f"prompt of {len(ids)} + {length} new tokens exceed context={self.context}; "
                f"ask for at most {room}"
            )
        return ids, min(128, room) if length is None else length

    def room(self, prompt: str) -> int:
        """Return how many new tokens the context leaves after a prompt; ConfigError if empty."""
        return self.context - len(self._ids(prompt))

    def _ids(self, prompt: str) -> list[int]:
        if not prompt:
            raise ConfigError("prompt is empty; give at least one character to go on from")
        bos = self.tokenizer.special.bos
        ids = self.tokenizer.encode(prompt)
        return ids if bos is None else [bos, *ids]

    def stream(
        self,
        prompt: str,
        *,
        length: int | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
    ) -> Iterator[str]:
        """Yield the completion in pieces that never split a character.

        Joined, they are what `complete` returns for the same single prompt and seed.
        """
        ids, length = self.encode(prompt, length)
        sample = sampler(temperature_=temperature, top_k_=top_k, top_p_=top_p)
        words = Detokenizer(self.tokenizer, after=ids)
        for tokens in self._chunks([ids], length, sample, seed):
            piece = "".join(words.push(token) for token in self._until_stop(tokens[0].tolist()))
            if piece:
                yield piece
        if rest := words.flush():
            yield rest

    def complete(
        self,
        prompts: Sequence[str],
        *,
        length: int | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        samples: int = 1,
    ) -> list[str]:
        """Return `samples` completions of each prompt, prompt by prompt, decoded as one batch.

        Request i of the batch draws with fold_in(key(seed), i): its text depends on its own
        prompt and number, not on its neighbours. seed: 0 to 2^64 - 1.
        """
        encoded = [self.encode(prompt, length) for prompt in prompts for _ in range(samples)]
        longest = max(new for _, new in encoded)
        sample = sampler(temperature_=temperature, top_k_=top_k, top_p_=top_p)
        rows = [ids for ids, _ in encoded]
        tokens = np.concatenate(list(self._chunks(rows, longest, sample, seed)), axis=1)
        return [
            self._text(ids, self._until_stop(row[:new]))
            for row, (ids, new) in zip(tokens.tolist(), encoded, strict=True)
        ]

    def _text(self, prompt: list[int], new: list[int]) -> str:
        """The text that `new` adds after `prompt`, spelled as `stream` would."""
        words = Detokenizer(self.tokenizer, after=prompt)
        return "".join(words.push(token) for token in new) + words.flush()

    def _chunks(
        self, rows: list[list[int]], length: int, sample: Chain, seed: int
    ) -> Iterator[np.ndarray]:
        """Yield [B, <= CHUNK] tokens until `length` are made or all rows have stopped."""
        widths = np.asarray([len(row) for row in rows], np.int32)
        width = _bucket(int(widths.max()))
        prompt = np.zeros((len(rows), width), np.int32)
        for row, ids in zip(prompt, rows, strict=True):
            row[: len(ids)] = ids
        capacity = _bucket(width + length + CHUNK)
        requests = request_keys(keys.from_seed(seed), len(rows))
        token, cache = _prefill(self.params, self.config, prompt, widths, capacity)
        for start in range(0, length, CHUNK):
            tokens, cache = _more(
                self.params,
                self.config,
                self.tokenizer.vocab_size,
                cache,
                token,
                requests,
                sample,
                self._stop,
                start,
            )
            token = tokens[:, -1]
            made = np.asarray(tokens)[:, : length - start]
            self._check(made, start)
            yield made
            if np.isin(made[:, -1], self._stop).all():
                return

    @cached_property
    def _stop(self) -> np.ndarray:
        eos = self.tokenizer.special.eos
        return np.asarray([NOT_FINITE - 1 if eos is None else eos], np.int32)

    def _until_stop(self, tokens: list[int]) -> list[int]:
        eos = self.tokenizer.special.eos
        return tokens[: tokens.index(eos)] if eos in tokens else tokens

    def _check(self, tokens: np.ndarray, start: int) -> None:
        if not (tokens == NOT_FINITE).any():
            return
        request, place = np.argwhere(tokens == NOT_FINITE)[0]
        raise NonFiniteError(
            f"request {request}: the logits of new token {start + place + 1} are not finite; "
            f"the parameters are damaged or diverged: take an earlier checkpoint"
        )


def open_run(folder: str | os.PathLike, *, step: int | None = None) -> Session:
    """Return a Session on a run or saved model; raises what `text.model.load` raises.

    CheckpointError, too, if the folder has no tokenizer. step: a certain checkpoint of a run.
    """
    config, params = load(folder, step=step)
    return Session(config, params, tokenizer_of(Path(folder)))


def _bucket(size: int) -> int:
    bucket = BUCKET
    while bucket < size:
        bucket *= 2
    return bucket


@partial(jax.jit, static_argnames=("config", "capacity"))
def _prefill(params, config, prompt, widths, capacity):
    return prefill(params, config, prompt, widths, capacity)


@partial(jax.jit, static_argnames=("config", "known"), donate_argnames="cache")
def _more(params, config, known, cache, token, keys, sample, stop, start):
    whole = model_step(params, config)

    def step(tokens, cache):
        logits, cache = whole(tokens, cache)
        # A table may have more rows than the tokenizer has ids: those spell no text.
        return jnp.where(jnp.arange(config.V) < known, logits, -jnp.inf), cache

    return decode(step, cache, token, keys, sample, CHUNK, stop=stop, start=start)

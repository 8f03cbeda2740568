"""Text in, text out: a loaded model that completes prompts, streamed or in a batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain, chain
from jaxgen.decoding.detail import Reason
from jaxgen.decoding.loop import NOT_FINITE, decode_chunk, request_keys
from jaxgen.decoding.shape import temperature, top_k, top_p
from jaxgen.decoding.stop import StopStrings, stop_strings
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.mesh import place
from jaxgen.ops import keys
from jaxgen.text.generate import model_step, prefill
from jaxgen.text.model import load, tokenizer_of
from jaxgen.text.writing import Writing
from jaxgen.tokens import Tokenizer

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


class Request(NamedTuple):
    """A prompt, and when its completion ends; see `Session.complete`."""

    prompt: str
    length: int | None
    stop: tuple[str, ...]
    seconds: float | None


class Completion(NamedTuple):
    """The text that follows a prompt, and why it ended."""

    text: str
    reason: Reason


@dataclass(frozen=True)
class Session:
    """A model with its tokenizer, ready to complete text; the clock counts seconds."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    clock: Callable[[], float] = time.monotonic

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
        stop: Sequence[str] = (),
        seconds: float | None = None,
    ) -> Generator[str, None, Reason]:
        """Yield the completion in pieces that never split a character; return why it ended.

        Joined, they are what `complete` returns for the same single prompt and seed.
        """
        sample = sampler(temperature_=temperature, top_k_=top_k, top_p_=top_p)
        request = Request(prompt, length, tuple(stop), seconds)
        reason = Reason.LENGTH
        for ((piece, ended),) in self.follow([request], sample, seed):
            if piece:
                yield piece
            reason = reason if ended is None else ended
        return reason

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
        stop: Sequence[str] = (),
        seconds: float | None = None,
    ) -> list[str]:
        """Return `samples` completions of each prompt, prompt by prompt, decoded as one batch.

        Request i of the batch draws with fold_in(key(seed), i): its text depends on its own
        prompt and number, not on its neighbours. seed: 0 to 2^64 - 1.
        stop: texts that end a completion, which is what comes before the first of them.
        seconds: the time that a completion may take, counted from this call; it ends with the
        chunk of CHUNK tokens in which that is over.
        """
        sample = sampler(temperature_=temperature, top_k_=top_k, top_p_=top_p)
        requests = [
            Request(prompt, length, tuple(stop), seconds)
            for prompt in prompts
            for _ in range(samples)
        ]
        return [one.text for one in self.answer(requests, sample, seed)]

    def answer(self, requests: Sequence[Request], sample: Chain, seed: int) -> list[Completion]:
        """Return the completions of requests that may differ in all but the sampler."""
        texts = [""] * len(requests)
        reasons: list[Reason] = [Reason.LENGTH] * len(requests)
        for parts in self.follow(requests, sample, seed):
            for number, (piece, ended) in enumerate(parts):
                texts[number] += piece
                reasons[number] = reasons[number] if ended is None else ended
        return [Completion(*pair) for pair in zip(texts, reasons, strict=True)]

    def follow(
        self, requests: Sequence[Request], sample: Chain, seed: int
    ) -> Iterator[list[tuple[str, Reason | None]]]:
        """Yield, for each request, the next piece of its text, and why it ended if it has by then.

        Raises ConfigError for a prompt that can't be completed, a stop string that can't be, or
        a time that is none; NonFiniteError for logits that are not finite.
        """
        begun = self.clock()
        encoded = [self.encode(one.prompt, one.length) for one in requests]
        rows = [ids for ids, _ in encoded]
        limits = np.asarray([new for _, new in encoded], np.int32)
        texts = [
            Writing(self.tokenizer, ids, one.stop, new)
            for (ids, new), one in zip(encoded, requests, strict=True)
        ]
        ends = np.asarray([np.inf if one.seconds is None else one.seconds for one in requests])
        for tokens in self._chunks(rows, limits, self._strings(requests), sample, seed):
            over = self.clock() - begun >= ends
            parts = []
            for row, text in enumerate(texts):
                fresh = text.reason is None
                piece = text.push(tokens[row].tolist())
                if over[row] and text.reason is None:
                    piece += text.end(Reason.TIME)
                parts.append((piece, text.reason if fresh else None))
                # A lower limit ends the row on the device, with its next chunk.
                limits[row] = limits[row] if text.reason is None else 0
            yield parts

    def _chunks(
        self,
        rows: list[list[int]],
        limits: np.ndarray,
        strings: StopStrings,
        sample: Chain,
        seed: int,
    ) -> Iterator[np.ndarray]:
        """Yield [B, CHUNK] tokens until all `limits` (which may fall meanwhile) are reached."""
        widths = np.asarray([len(row) for row in rows], np.int32)
        width = _bucket(int(widths.max()))
        prompt = np.zeros((len(rows), width), np.int32)
        for row, ids in zip(prompt, rows, strict=True):
            row[: len(ids)] = ids
        longest = int(limits.max())
        capacity = _bucket(width + longest + CHUNK)
        requests = request_keys(keys.from_seed(seed), len(rows))
        token, cache = _prefill(self.params, self.config, prompt, widths, capacity)
        for start in range(0, longest, CHUNK):
            chunk = _more(
                self.params,
                self.config,
                self.tokenizer.vocab_size,
                cache,
                token,
                requests,
                sample,
                self._stop,
                strings,
                start,
                limits.copy(),
            )
            token, cache, strings = chunk.tokens[:, -1], chunk.cache, chunk.strings
            made = np.asarray(place.fetch(chunk.tokens))
            self._check(made, start)
            yield made
            if (limits <= start + CHUNK).all():
                return

    def _strings(self, requests: Sequence[Request]) -> StopStrings:
        for one in requests:
            if one.seconds is not None and not one.seconds > 0:
                raise ConfigError(f"seconds={one.seconds} must be greater than 0, or None")
        surface = getattr(self.tokenizer, "surface", None)
        if surface is None and any(one.stop for one in requests):
            raise ConfigError(
                f"stop={requests[0].stop} needs a tokenizer whose text is its pieces joined, but "
                f"this one rewrites neighbouring pieces"
            )
        pieces = (b"",) * self.tokenizer.vocab_size if surface is None else surface.pieces
        # Made for requests without a string as well, so that one program serves both.
        return stop_strings([one.stop for one in requests], pieces)

    @cached_property
    def _stop(self) -> np.ndarray:
        eos = self.tokenizer.special.eos
        return np.asarray([NOT_FINITE - 1 if eos is None else eos], np.int32)

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
def _more(params, config, known, cache, token, keys, sample, stop, strings, start, limits):
    whole = model_step(params, config)

    def step(tokens, cache):
        logits, cache = whole(tokens, cache)
        # A table may have more rows than the tokenizer has ids: those spell no text.
        return jnp.where(jnp.arange(config.V) < known, logits, -jnp.inf), cache

    ends = {"stop": stop, "strings": strings, "start": start, "limit": limits}
    return decode_chunk(step, cache, token, keys, sample, CHUNK, **ends)

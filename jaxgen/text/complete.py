"""Text in, text out: a loaded model that completes prompts, streamed or in a batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen.config import ModelConfig, Weights
from jaxgen.decoding.detail import Reason
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.text import answering
from jaxgen.text.answering import Answer, Group
from jaxgen.text.batches import Request
from jaxgen.text.generation import Generation
from jaxgen.text.tasks.model import open_model
from jaxgen.tokens import Tokenizer
from jaxgen.tokens.protocol import check_ids

DEFAULT_LENGTH = 128  # new tokens, if the context has room for them


class Asked(NamedTuple):
    """A prompt, how to go on from it, and the place of its first text among its seed's draws.

    prompt: a text, or its ids, which are read as they are.
    """

    prompt: str | tuple[int, ...]
    settings: Generation
    number: int = 0


def numbered(prompts: Sequence[str | tuple[int, ...]], settings: Generation) -> list[Asked]:
    """Return what is asked when many prompts share their settings, no two texts their draws."""
    each = settings.best_of or settings.samples
    return [Asked(prompt, settings, i * each) for i, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Session:
    """A model with its tokenizer, ready to complete text.

    start: what the texts of an encoder-decoder begin with; its prompts are what its encoder reads.
    ends: ids that end a text besides the tokenizer's eos. clock: counts seconds.
    """

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    start: int | None = None
    ends: tuple[int, ...] = ()
    clock: Callable[[], float] = time.monotonic

    @property
    def context(self) -> int:
        """Return how many tokens a prompt and its completion may have together."""
        return self.config.context

    def encode(
        self, prompt: str | tuple[int, ...], length: int | None = None
    ) -> tuple[list[int], int]:
        """Return (ids, new tokens to make); ConfigError for an empty or too long prompt.

        length: new tokens wanted; None takes up to 128 of what the context leaves.
        """
        ids = self._ids(prompt)
        if self.config.topology == "encoder_decoder":
            return ids, self._beside(ids, length)
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
        return ids, min(DEFAULT_LENGTH, room) if length is None else length

    def room(self, prompt: str) -> int:
        """Return how many new tokens the context leaves after a prompt; ConfigError if empty."""
        return self.context - len(self._ids(prompt))

    def stream(self, prompt: str, settings: Generation) -> Generator[str, None, Reason]:
        """Yield the completion in pieces that never split a character; return why it ended.

        Joined, they are what `complete` returns for the same single prompt. What is not drawn
        comes in one piece.
        """
        asked = Asked(prompt, settings)
        if settings.strategy != "draw" or settings.best_of or settings.samples > 1:
            (answer,) = self.generate([asked])[0]
            yield answer.text
            return answer.reason
        reason = Reason.LENGTH
        for ((piece, ended),) in answering.follow(self._group([self._requests(asked)[0]], None)):
            if piece:
                yield piece
            reason = reason if ended is None else ended
        return reason

    def complete(self, prompts: Sequence[str | tuple[int, ...]], settings: Generation) -> list[str]:
        """Return the completions of each prompt, prompt by prompt; see `generate`."""
        answers = self.generate(numbered(prompts, settings))
        return [one.text for row in answers for one in row]

    def generate(self, asked: Sequence[Asked], *, detail: bool = False) -> list[list[Answer]]:
        """Return the answers to each prompt, the best first where they are ranked.

        Request j of a prompt draws with fold_in(key(seed), number + j): its text depends on its
        own prompt, settings and number, not on its neighbours. Prompts that one program can serve
        are decoded as one batch.
        detail: also the log-probability of each token, and `top_logprobs` alternatives.
        Raises ConfigError for a prompt or setting that can't be, NonFiniteError for logits that
        are not finite.
        """
        requests = [self._requests(one) for one in asked]
        groups: dict[Any, list[tuple[int, Request]]] = {}
        for place, row in enumerate(requests):
            for request in row:
                key = answering.program(request.settings)
                groups.setdefault(key, []).append((place, request))
        found: list[list[Answer]] = [[] for _ in asked]
        for members in groups.values():
            ranked = any(request.settings.best_of for _, request in members)
            top = max(request.settings.top_logprobs or 0 for _, request in members)
            group = self._group(
                [request for _, request in members], top if detail or ranked else None
            )
            for (place, _), answers in zip(members, answering.answers(group), strict=True):
                found[place].extend(answers)
        return [_kept(row, one.settings) for row, one in zip(found, asked, strict=True)]

    def _group(self, requests: Sequence[Request], top: int | None) -> Group:
        settings = requests[0].settings
        draft = None if settings.draft is None else self._draft(settings)
        return Group(
            self.config,
            self.params,
            self.tokenizer,
            tuple(requests),
            self.start,
            self.ends,
            top,
            self.clock,
            draft,
        )

    def _requests(self, asked: Asked) -> list[Request]:
        prompt, settings, number = asked
        ids, limit = self.encode(prompt, settings.max_new_tokens)
        if settings.min_new_tokens is not None and settings.min_new_tokens > limit:
            raise ConfigError(
                f"min_new_tokens={settings.min_new_tokens} is more than the {limit} new tokens "
                f"that there are to make"
            )
        other = (
            () if settings.negative_prompt is None else tuple(self._ids(settings.negative_prompt))
        )
        if len(other) + limit > self.context:
            raise ConfigError(
                f"negative_prompt of {len(other)} + {limit} new tokens exceed "
                f"context={self.context}; shorten it"
            )
        if settings.guidance is not None and not other and self.config.topology != "decoder":
            raise ConfigError(
                f"guidance={settings.guidance} needs negative_prompt with "
                f"topology={self.config.topology}: its texts go on from a source"
            )
        for name in ("top_logprobs", "beams"):
            if (getattr(settings, name) or 0) > self.tokenizer.vocab_size:
                raise ConfigError(
                    f"{settings.told(name)} exceeds the {self.tokenizer.vocab_size} tokens of the "
                    f"vocabulary"
                )
        draws = range(settings.best_of or settings.samples)
        return [Request(ids, limit, settings, number + j, other) for j in draws]

    def _draft(self, settings: Generation) -> Session:
        draft = _opened(str(settings.draft))
        if draft.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise ConfigError(
                f"draft={settings.draft} has another tokenizer than this model; it can't guess "
                f"its tokens"
            )
        if draft.context < self.context or draft.config.topology != self.config.topology:
            raise ConfigError(
                f"draft={settings.draft} has context={draft.context} and "
                f"topology={draft.config.topology}, the model context={self.context} and "
                f"topology={self.config.topology}; it must reach as far"
            )
        return draft

    def _beside(self, ids: list[int], length: int | None) -> int:
        """Return the new tokens of a text beside its source `ids`."""
        if len(ids) > self.context:
            raise ConfigError(
                f"prompt has {len(ids)} tokens but context={self.context}; shorten it by "
                f"{len(ids) - self.context}"
            )
        room = self.context - 1
        if length is not None and length > room:
            raise ConfigError(
                f"{length} new tokens exceed context={self.context} less the one they begin "
                f"with; ask for at most {room}"
            )
        return min(DEFAULT_LENGTH, room) if length is None else length

    def _ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        if not prompt:
            raise ConfigError("prompt is empty; give at least one character to go on from")
        if not isinstance(prompt, str):
            check_ids(prompt, self.tokenizer.vocab_size)
            return list(prompt)
        special, ids = self.tokenizer.special, self.tokenizer.encode(prompt)
        ids = ids if special.bos is None else [special.bos, *ids]
        if self.config.topology != "encoder_decoder" or special.eos is None:
            return ids
        return [*ids, special.eos]


def open_run(
    folder: str | os.PathLike, *, step: int | None = None, weights: Weights = "plain"
) -> Session:
    """Return a Session on a run or saved model; raises what `text.model.load` raises.

    CheckpointError, too, if the folder has no tokenizer; ConfigError for a model that makes no
    text. step: a certain checkpoint of a run. weights: "int8" rounds them (`serving.ready`).
    """
    model = open_model(folder, step=step)
    config = model.config
    if config.head != "lm" or config.topology == "encoder":
        raise ConfigError(
            f"{Path(folder)} has topology={config.topology} and head={config.head}, which gives "
            f"no next token; generation needs a decoder with head=lm"
        )
    start = model.start if config.topology == "encoder_decoder" else None
    if config.topology == "encoder_decoder" and start is None:
        raise ConfigError(f"{Path(folder)} does not say what its decoder begins with")
    params = serving.ready(model.params, config, weights=weights)
    return Session(config, params, model.tokenizer, start, model.stop)


@lru_cache(maxsize=2)
def _opened(folder: str) -> Session:
    return open_run(folder)


def _kept(answers: list[Answer], settings: Generation) -> list[Answer]:
    """The likeliest of drawn answers, if they are ranked: by the mean of their tokens."""
    if not settings.best_of:
        return answers
    ranked = [one._replace(score=_mean(one.logprobs)) for one in answers]
    ranked.sort(key=lambda one: -(one.score or 0.0))
    return ranked[: settings.samples]


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / len(logprobs)

"""Text in, text out: a loaded model that goes on from prompts, streamed or in batches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxgen import arguments
from jaxgen.config import ModelConfig, Weights
from jaxgen.data.media.images import ImageLike
from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError, nearest
from jaxgen.models import serving
from jaxgen.pretrained import chat_template as chats
from jaxgen.pretrained.adapted import Words
from jaxgen.pretrained.chat_template import ChatTemplate, Message
from jaxgen.safety.policy import read_policy
from jaxgen.store.steps import Step
from jaxgen.text import assistant, batch_decoding
from jaxgen.text.batch_decoding import Completion, RequestBatch
from jaxgen.text.batches import (
    Progress,
    Request,
    batch_size,
    fill_up,
    num_images,
    split_by_length,
)
from jaxgen.text.loaded_model import (
    LoadedModel,
    Overflow,
    check_generates,
    check_list,
    open_model,
    template_of,
)
from jaxgen.text.prompts import Prompt, Text, ids_of, number_prompts, requests_of, room_after
from jaxgen.text.request import DEFAULTS, Generation
from jaxgen.text.tasks import scoring, token_classification, transcription
from jaxgen.text.tool_sources import Source
from jaxgen.text.users import User, Users, preferred, with_system
from jaxgen.tokens import Tokenizer


@dataclass(frozen=True)
class Session:
    """A model ready for text, as `jaxgen.open(folder)` makes it.

    Where a request says nothing, the folder's generation_config.json holds. An encoder embeds and
    classifies; asked to generate, it raises ConfigError.

    Args:
      model: config, parameters, tokenizer and generation config of a folder.
      params: its parameters as decoding reads them (`serving.ready`).
      clock: seconds, as `time.monotonic` counts them, for `max_seconds`.
      users: those whose adapters and preferences requests may name, by user=.
      policy: a file of what texts may not hold, which every request has.

    Example:
      >>> import jax, jaxgen
      >>> from jaxgen.text.request import Generation
      >>> from jaxgen.text.session import Prompt
      >>> from jaxgen.tokens.plain import Bytes
      >>> config = jaxgen.ModelConfig(vocab_size=259, context=32, layers=1, d_model=8, heads=2)
      >>> jaxgen.save("small", config, jaxgen.init(config, jax.random.key(0)), tokenizer=Bytes())
      >>> session = jaxgen.open("small")
      >>> text = session.generate("ab", temperature=0.0, max_new_tokens=4)
      >>> text == "".join(session.stream("ab", temperature=0.0, max_new_tokens=4))
      True
      >>> (found,) = session.run([Prompt("ab", Generation(samples=2))], detail=True)
      >>> [len(one.logprobs) == len(one.tokens) for one in found]
      [True, True]
      >>> session.embed(["ab", "c"]).shape
      (2, 8)
    """

    model: LoadedModel
    params: Any
    clock: Callable[[], float] = time.monotonic
    users: Users | None = None
    policy: str | None = None

    @property
    def config(self) -> ModelConfig:
        """Return the model's config."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return self.model.tokenizer

    @property
    def context(self) -> int:
        """Return how many tokens a prompt and its completion may have together."""
        return self.config.longest

    @property
    def reads_sources(self) -> bool:
        """Return whether a prompt is a source that an encoder reads, beside the text."""
        return self.model.reads_sources

    def generate(
        self,
        prompt: Text,
        settings: Generation | None = None,
        *,
        user: str | None = None,
        images: Sequence[ImageLike] = (),
        **changes: Any,
    ) -> str:
        """Return the text that follows a prompt.

        Args:
          prompt: a text, or token ids.
          settings: a `Generation`; None: what the folder says.
          user: whose adapter and preferences hold, in a session that was opened with users.
          images: files, or bytes [height, width, 3], of a model that reads them in the places of
            a token in the prompt, in their order.
          changes: its fields by name, such as temperature=0.7 or max_new_tokens=50; they win.

        Raises:
          ConfigError: for an empty or too long prompt, or a setting out of range.
        """
        check_list([prompt], "prompts")
        asked = Prompt(prompt, _changed(settings, changes), 0, user, images)
        return self.run([asked])[0][0].text

    def chat(
        self,
        messages: Sequence[Message],
        settings: Generation | None = None,
        *,
        tools: Sequence[Mapping[str, Any] | Source] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        user: str | None = None,
        **changes: Any,
    ) -> str:
        """Return the model's next turn in a chat.

        Args:
          messages: the turns so far, [{"role": "user", "content": "..."}, ...]; content may be a
            list of {"type": "text", "text": ...} and {"type": "image", "path": FILE}.
          tools: what the model may call, until it says something: functions, "FILE.py" or
            "mcp:COMMAND" (see `text.tool_sources.open_tools`); or JSON schemas of such: then its
            call is the text.
          chat_template_kwargs: what else the template reads, such as {"enable_thinking": False}.
          user: as of `generate`; a chat without a system's message begins with the user's.
          settings, changes: as of `generate`.

        Raises:
          CheckpointError: if the folder has no chat template or it is wrong.
          ConfigError: for a chat or a value that it refuses, or that is too long.
        """
        if user is not None:
            messages = with_system(self._user(user), messages)
        tools = [tools] if isinstance(tools, str) else tools
        sources = [tool for tool in tools or () if not isinstance(tool, Mapping)]
        if sources and len(sources) < len(tools or ()):
            raise ConfigError("tools= must be functions, or schemas of functions, not both")
        if sources:
            how, values = _changed(settings, changes), chat_template_kwargs
            turns = assistant.answer(self, messages, sources, how, values=values, user=user)
            return turns[-1]["content"]
        values = {**(chat_template_kwargs or {}), **({} if tools is None else {"tools": tools})}
        own = {"user": user, "images": chats.images_of(messages)}
        return self.generate(self.chat_ids(messages, **values), settings, **own, **changes)

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        batch: int = 32,
        overflow: Overflow = "refuse",
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Return a vector [N, D] of each text.

        Args:
          texts: a list of texts.
          prompt_name: which prompt of a sentence-transformers folder is put before each text, as
            "query" or "document"; None: its default one, if it has such.
          batch: texts to read at once.
          overflow: of a text longer than the context: refuse it, or cut its end.
          progress: called with (texts done, texts in all).

        Raises:
          ConfigError: for an empty or too long text, or a prompt that the folder does not have.
        """
        return scoring.embed(
            *(self.model, texts),
            prompt_name=prompt_name,
            batch=batch,
            overflow=overflow,
            progress=progress,
        )

    def score(
        self,
        texts: Sequence[str],
        *,
        batch: int = 32,
        overflow: Overflow = "refuse",
        progress: Progress | None = None,
    ) -> list[tuple[float, int]]:
        """Return (sum of log-probabilities in nats, tokens) of each text, by a decoder.

        The arguments are those of `embed`.
        """
        return scoring.score(self.model, texts, batch=batch, overflow=overflow, progress=progress)

    def classify(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        batch: int = 32,
        overflow: Overflow = "refuse",
        progress: Progress | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Return (label, probability) of each class for each text or pair, the likeliest first.

        The arguments are those of `embed`.
        """
        how = {"batch": batch, "overflow": overflow, "progress": progress}
        return scoring.classify(self.model, texts, **how)

    def classify_tokens(
        self,
        texts: Sequence[str],
        *,
        aggregation: token_classification.Aggregation = "simple",
        batch: int = 32,
        overflow: Overflow = "refuse",
        progress: Progress | None = None,
    ) -> list[list[token_classification.Entity]]:
        """Return the named entities of each text.

        aggregation: "none", "simple", "first", "average" or "max", as `tasks.classify_tokens` says;
        the other arguments are those of `embed`.
        """
        how = {"batch": batch, "overflow": overflow, "progress": progress}
        return token_classification.classify_tokens(
            self.model, texts, aggregation=aggregation, **how
        )

    def transcribe(
        self,
        sounds: Sequence[str | os.PathLike | np.ndarray],
        settings: transcription.Speech | None = None,
        *,
        batch: int = 1,
    ) -> list[transcription.Transcript]:
        """Return the transcript of each sound, by a Whisper model.

        Args:
          sounds: files, or samples [T] at the rate of the model, 16000 a second.
          settings: a `tasks.Speech`: language, task, timestamps.
          batch: sounds to read at once.

        Raises:
          ConfigError: for a model that reads no sound; DataError for a file that holds none.
        """
        return transcription.transcribe(self.model, sounds, settings, batch=batch)

    def chat_ids(
        self, messages: Sequence[Message], template: ChatTemplate | None = None, /, **values: Any
    ) -> tuple[int, ...]:
        """Return the ids of a chat up to where the model's turn begins.

        values: what its template reads beside the messages, such as tools or enable_thinking;
        ConfigError for one that it does not.
        """
        if isinstance(messages, str):
            raise ConfigError(
                f"messages={messages[:40]!r} is one text; give a list of messages: "
                f'[{{"role": "user", "content": "..."}}]'
            )
        last = messages[-1] if len(messages) else None
        if isinstance(last, Mapping) and last.get("role") == "assistant":
            raise ConfigError(
                "the last message is the assistant's, so there is nothing to answer; leave it out, "
                "or end with the user's"
            )
        template = template or template_of(self.model)
        chats.check_values(template, values)
        if chats.images_of(messages) or self.config.vision is not None:
            assert self.model.images is not None  # which raises for a model that reads none
            values["images"] = True
        return tuple(chats.encode_chat(template, self.tokenizer, messages, **values))

    def stream(
        self,
        prompt: Text,
        settings: Generation | None = None,
        *,
        user: str | None = None,
        **changes: Any,
    ) -> Generator[str, None, Reason]:
        """Yield the completion in pieces that never split a character; return why it ended.

        The arguments are those of `generate`, and so is the text of all pieces joined. Beams, and
        the other strategies that do not sample, come in one piece.
        """
        asked = self.preferring(Prompt(prompt, _changed(settings, changes), 0, user))
        (requests,) = requests_of(self.model, [asked])
        if requests[0].settings.strategy != "draw" or len(requests) > 1 or asked.settings.best_of:
            (answer,) = self.run([asked])[0]
            yield answer.text
            return answer.reason
        reason = Reason.LENGTH
        group = self.request_batch(requests, None)
        for ((piece, ended),) in batch_decoding.stream(group, [group.begin(requests[0])]):
            if piece:
                yield piece
            reason = reason if ended is None else ended
        return reason

    def complete(
        self,
        prompts: Sequence[Text],
        settings: Generation | None = None,
        *,
        batch: int | None = None,
        progress: Progress | None = None,
        user: str | None = None,
        **changes: Any,
    ) -> list[str]:
        """Return the completions of each prompt, prompt by prompt; see `generate` and `run`."""
        check_list(prompts, "prompts")
        asked = number_prompts(prompts, _changed(settings, changes), user)
        completions = self.run(asked, batch=batch, progress=progress)
        return [one.text for row in completions for one in row]

    def run(
        self,
        prompts: Sequence[Prompt],
        *,
        detail: bool = False,
        batch: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Return the completions of each prompt, the best first where they are ranked.

        Prompts that one program can serve are decoded together, those of about one length side by
        side. Text j of a prompt draws with fold_in(key(seed), number + j): it depends on its own
        prompt, settings and number, not on its neighbours.

        Args:
          prompts: texts or ids with their settings.
          detail: also return each token's log-probability, and `top_logprobs` alternatives.
          batch: texts to decode at once, at most; None: all.
          progress: called with (texts done, texts in all).

        Raises:
          ConfigError: for a prompt or setting that can't be.
          NonFiniteError: for logits that are not finite.
        """
        prompts = [self.preferring(prompt) for prompt in prompts]
        requests = requests_of(self.model, prompts)
        groups: dict[Any, list[tuple[int, Request]]] = {}
        for place, row in enumerate(requests):
            for request in row:
                key = batch_decoding.batch_key(request.settings), num_images(request)
                groups.setdefault(key, []).append((place, request))
        completions: list[list[tuple[int, list[Completion]]]] = [[] for _ in prompts]
        done, total = 0, sum(map(len, requests))
        for members in groups.values():
            settings = [request.settings for _, request in members]
            ranked = any(one.best_of for one in settings)
            top = max(one.top_logprobs or 0 for one in settings) if detail or ranked else None
            parts, size = [list(range(len(members)))], batch_size(len(members))
            if batch is not None and batch < len(members):
                parts = split_by_length([len(request.ids) for _, request in members], batch)
                size = batch  # the last one, too, so that no other program is compiled for it
            for part in parts:
                group = self.request_batch([members[i][1] for i in part], top, size)
                for i, answers in zip(part, batch_decoding.complete(group), strict=True):
                    place, request = members[i]
                    completions[place].append((request.number, answers))
                done += len(part)
                if progress:
                    progress(done, total)
        in_order = [
            [one for _, answers in sorted(row, key=itemgetter(0)) for one in answers]
            for row in completions
        ]
        settings = [prompt.settings for prompt in prompts]
        return list(map(batch_decoding.rank, in_order, settings))

    def ids(self, text: Text) -> list[int]:
        """Return what the model reads of a prompt; ConfigError for an empty one."""
        return ids_of(self.model, text)

    def room(self, text: Text) -> int:
        """Return how many new tokens the context leaves after a prompt; ConfigError if none."""
        return room_after(self.model, self.ids(text))

    def _user(self, name: str) -> User:
        if self.users is None:
            raise ConfigError(
                f"user={name}: the session knows no users; jaxgen.open(..., users=FOLDER) does"
            )
        return self.users.read(name)

    def preferring(self, prompt: Prompt) -> Prompt:
        """Return the prompt with its user's preferences where it says nothing, and the policy."""
        settings = prompt.settings
        if prompt.user is not None:
            settings = preferred(self._user(prompt.user), settings)
        if self.policy is not None:
            if settings.policy not in (None, self.policy):
                raise ConfigError(
                    f"policy={settings.policy} has no effect: this session has {self.policy} for "
                    f"all requests; leave it out, or put its rules in there"
                )
            settings = replace(settings, policy=self.policy)
        return prompt if settings is prompt.settings else prompt._replace(settings=settings)

    def request_batch(
        self, requests: Sequence[Request], top: int | None = None, size: int | None = None
    ) -> RequestBatch:
        """Return requests of one program as a batch, with `size` rows; see `RequestBatch`."""
        draft = requests[0].settings.draft
        size = batch_size(len(requests)) if size is None else size
        params, rows = self.params, [one.user for one in fill_up(requests, size)]
        if self.users is not None and any(rows):
            params = self.users.params(params, rows)
        return RequestBatch(
            self.model,
            params,
            tuple(requests),
            size,
            top,
            self.clock,
            None if draft is None else self._draft(draft),
        )

    def _draft(self, folder: str) -> Session:
        draft = _opened(folder)
        if draft.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise ConfigError(
                f"draft={folder} has another tokenizer than this model; it can't guess its tokens"
            )
        if draft.context < self.context or draft.config.topology != self.config.topology:
            raise ConfigError(
                f"draft={folder} has context={draft.context} and "
                f"topology={draft.config.topology}, the model context={self.context} and "
                f"topology={self.config.topology}; it must reach as far"
            )
        return draft


@arguments.checked
def open_session(
    folder: str | os.PathLike,
    *,
    step: Step = None,
    weights: Weights = "plain",
    adapter: Words = (),
    users: str | os.PathLike | None = None,
    capacity: int = 64,
    policy: str | os.PathLike | None = None,
) -> Session:
    """Open a folder for text: text in, text out.

    Args:
      folder: a run, a folder of `jaxgen.save`, or a Hugging Face folder, with a tokenizer.
      step: which checkpoint of a run, as for `jaxgen.load`.
      weights: "int8" rounds those of a decoder to a byte each; "stored" keeps the matrices of a
        GGUF file that are Q8_0 so, 8.5 bits a number.
      adapter: PATH or PATH=SCALE of an adapter, or several, as for `jaxgen.load`.
      users: a folder of users (`jaxgen.text.users`), each with an adapter, a system prompt and
        preferences, whom requests name by user=.
      capacity: adapters of users in memory at once.
      policy: a file of what texts may not hold (`jaxgen.safety.policy`), which every request has.

    Returns:
      A `Session`: session.generate("text", temperature=0.7), session.chat(messages), and more.

    Raises:
      CheckpointError: for a folder that `jaxgen.load` refuses, or without a tokenizer.
      ConfigError: for int8 weights of a model that does not generate.

    Example:
      >>> from jaxgen import tokens
      >>> tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
      >>> config = jaxgen.ModelConfig(
      ...     vocab_size=tokenizer.vocab_size, context=16, layers=1, d_model=8, heads=2
      ... )
      >>> params = jaxgen.init(config, jax.random.key(0))
      >>> jaxgen.save("model", config, params, tokenizer=tokenizer)
      >>> len(jaxgen.open("model").score(["a text"]))
      1

      A user of the model, who has preferences and might have an adapter in users/ann/adapter:

      >>> from pathlib import Path
      >>> Path("users/ann").mkdir(parents=True)
      >>> _ = Path("users/ann/user.json").write_text('{"settings": {"max_new_tokens": 3}}')
      >>> session = jaxgen.open("model", users="users")
      >>> len(session.generate("a", user="ann", temperature=0.0, seed=0).encode()) <= 9
      True
    """
    stored = "stored" if weights == "stored" else "plain"
    model = open_model(folder, step=step, weights=stored, adapter=adapter)
    generates = model.config.topology != "encoder" and model.config.head == "lm"
    if not generates and weights != "int8":  # it embeds, classifies or answers
        return Session(model, model.params)
    check_generates(model)
    # The parameters as they were read are needed no more.
    params = serving.ready(model.params, model.config, weights=weights)
    model = replace(model, params=params)
    known = None if users is None else Users(users, model, capacity=capacity)
    if policy is not None:  # its mistakes are said now
        read_policy(policy).blocked(model.tokenizer)
        policy = os.fspath(policy)
    return Session(model, params, users=known, policy=policy)


def _changed(settings: Generation | None, changes: dict[str, Any]) -> Generation:
    """Return settings with some of their fields changed; ConfigError for a name that is none."""
    for name in changes.keys() - DEFAULTS.keys():
        raise ConfigError(f"{name}= is no setting of a text{nearest(name, DEFAULTS)}")
    return Generation(**(vars(settings or Generation()) | changes))


def session_of(model: LoadedModel) -> Session:
    """Return a Session on a model that is loaded; ConfigError if it makes no text."""
    check_generates(model)
    return Session(model, model.ready)


@lru_cache(maxsize=2)
def _opened(folder: str) -> Session:
    return open_session(folder)

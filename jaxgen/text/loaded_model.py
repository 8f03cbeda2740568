"""A model of a folder, ready to use: parameters, tokenizer, and what the folder says of both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.data.media.images import Pixels
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.pretrained.adapted import Words, resolved
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.chat_template import ChatTemplate, read_chat_template
from jaxgen.pretrained.generation_config import GenerationConfig, read_generation_config
from jaxgen.pretrained.hub_read import is_hub
from jaxgen.pretrained.languages import Languages, read_languages
from jaxgen.pretrained.model import load
from jaxgen.pretrained.preprocessor import read_image_prompts
from jaxgen.pretrained.sources import local_path
from jaxgen.store.steps import Step, run_and_step
from jaxgen.tokens import Tokenizer

Overflow = Literal["refuse", "cut"]


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that text needs.

    start: the id that an encoder-decoder's texts begin with; labels: of its classes; home: its
    folder, None for one that was made in memory; source: the id of the language of what it reads.
    """

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    start: int | None = None
    labels: tuple[str, ...] = ()
    generation_config: GenerationConfig = GenerationConfig()
    home: Path | None = None
    source: int | None = None

    @property
    def stop(self) -> tuple[int, ...]:
        """Return the ids that end what it writes: the folder's, or the tokenizer's."""
        eos, known = self.tokenizer.special.eos, self.tokenizer.vocab_size
        # Some folders name ends of a larger vocabulary, which are never made.
        named = tuple(i for i in self.generation_config.eos_token_id if i < known)
        return named or (() if eos is None else (eos,))

    @property
    def reads_sources(self) -> bool:
        """Return whether a prompt is a source that an encoder reads, beside the text."""
        return self.config.topology == "encoder_decoder"

    @cached_property
    def ready(self) -> Any:
        """Return the parameters as decoding reads them fastest (`serving.ready`), made once."""
        return serving.ready(self.params, self.config)

    @cached_property
    def images(self) -> Pixels:
        """Return the front end of images in prompts; ConfigError for a model that reads none."""
        vision, where = self.config.vision, self.home or "the model"
        if vision is None:
            hint = ", only in the place of a text: `jaxgen caption`" if self.config.stem else ""
            raise ConfigError(f"{where} reads no images in prompts (vision=None){hint}")
        return read_image_prompts(self.home, vision)

    @cached_property
    def image_mark(self) -> str | None:
        """Return the mark in whose places a prompt has images; None: its id is spelled by no text.

        Marks are pieces that only `encode_marked` takes for more than text.
        """
        vision, known = self.config.vision, getattr(self.tokenizer, "vocabulary", dict)()
        marks = getattr(self.tokenizer, "marks", list)()
        own = [one for one in marks if vision is not None and known.get(one) == vision.token]
        return own[0] if own else None

    @cached_property
    def languages(self) -> Languages | None:
        """Return the languages that its folder knows by tokens of their own; None for none."""
        return None if self.home is None else read_languages(self.home, self.tokenizer)

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """Return the ids before and after a text that is read.

        Of a Hugging Face folder those that its own tokenizer puts there; else bos and eos, as a
        run lays its documents.
        """
        special, home = self.tokenizer.special, self.home
        if (languages := self.languages) is not None:
            own = languages.codes[languages.source] if self.source is None else self.source
            return languages.around(own)
        hub = home is not None and is_hub(home)
        own = getattr(self.tokenizer, "around", None)
        if hub and own is not None:
            return own()
        before, after = ([] if i is None else [i] for i in (special.bos, special.eos))
        # transformers' sentencepiece tokenizers end texts for encoders alone.
        return before, [] if hub and self.config.topology == "decoder" else after

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, with those around it."""
        before, after = self.around
        return [*before, *self.tokenizer.encode(text), *after]


def open_model(
    folder: str | os.PathLike,
    *,
    step: Step = None,
    weights: Literal["plain", "stored"] = "plain",
    adapter: Words = (),
) -> LoadedModel:
    """Return the model of a run, a folder, or the hub, as `jaxgen.load` does.

    step: which checkpoint of a run, as for `jaxgen.load`, and adapter likewise. What the folder
    says of generation and is not followed here is a warning. CheckpointError, too, if the folder
    has no tokenizer.
    """
    folder, words = resolved(local_path(folder), adapter)
    config, params = load(folder, step=step, weights=weights, adapter=words)
    path, _ = run_and_step(folder)
    defaults, dropped = read_generation_config(path, unsaid=True)
    if dropped:
        warnings.warn(f"{path}: not followed: {', '.join(dropped)}", stacklevel=2)
    tokenizer = read_tokenizer(path)
    start = defaults.decoder_start_token_id
    start = tokenizer.special.bos if start is None else start
    if start is None and config.topology == "encoder_decoder":
        start = defaults.bos_token_id
    labels = defaults.labels if len(defaults.labels) == config.classes else ()
    return LoadedModel(config, params, tokenizer, start, labels, defaults, path)


def template_of(model: LoadedModel) -> ChatTemplate:
    """Return the chat template of the model's folder; CheckpointError if it has none."""
    if model.home is None:
        raise ConfigError("the model comes from no folder; pass a template")
    return read_chat_template(Path(model.home))


def check_list(texts: Sequence[Any], name: str = "texts") -> None:
    """Raise ConfigError for one text where a list of them is wanted, or a list of other things."""
    if isinstance(texts, str):
        raise ConfigError(f"{name}={texts[:40]!r} is one text; give a list of them: [...]")
    for number, text in enumerate(texts):
        if not isinstance(text, str | tuple | list | np.ndarray):  # a pair, or token ids
            kind = type(text).__name__
            raise ConfigError(f"{name}[{number}]={text!r:.40} is {kind}, not a text; give a str")


def encode_texts(
    model: LoadedModel, texts: Sequence[str], overflow: Overflow, *, longest: int | None = None
) -> list[list[int]]:
    """Return the ids of each text; one longer than the context is refused, or cut at its end.

    longest: tokens at most, where a folder says fewer than its context.

    Raises ConfigError for an empty text, and for one that is too long unless overflow is "cut";
    then the number of texts that were cut is a warning.
    """
    check_list(texts)
    if not all(texts):
        raise ConfigError(f"text {list(texts).index('')} is empty; remove it")
    rows, cut = [], 0
    # What may be longer than the context is cut to it all the same: it was trained with that.
    room = model.config.context if overflow == "cut" else model.config.longest
    most = min(room, longest or room)
    for number, text in enumerate(texts):
        row = model.ids(text)
        if len(row) > most:
            if overflow == "refuse":
                raise ConfigError(
                    f"text {number} has {len(row)} tokens, more than context={most}; shorten it, "
                    f"or cut such texts with overflow='cut' (--overflow cut)"
                )
            cut += 1
            end = model.around[1]
            row = [*row[: most - len(end)], *end]
        rows.append(row)
    if cut:
        warnings.warn(f"{cut} of {len(texts)} texts were cut to {most} tokens", stacklevel=3)
    return rows


def require(model: LoadedModel, task: str, **fields: tuple[str, ...]) -> None:
    """Raise ConfigError unless the model's config has one of the values that a task needs."""
    for name, values in fields.items():
        if (value := getattr(model.config, name)) not in values:
            raise ConfigError(f"{task} needs {name}={' or '.join(values)}, but {name}={value}")


def require_start(model: LoadedModel, task: str) -> None:
    """Raise ConfigError for an encoder-decoder without an id that its decoder begins with."""
    if model.config.topology == "encoder_decoder" and model.start is None:
        raise ConfigError(f"{task} needs decoder_start_token_id in config.json: a decoder begins")


def check_generates(model: LoadedModel) -> None:
    """Raise ConfigError unless a model gives next tokens."""
    config, where = model.config, model.home or "the model"
    if config.head != "lm" or config.topology == "encoder":
        raise ConfigError(
            f"{where} has topology={config.topology} and head={config.head}, which gives "
            f"no next token; generation needs a decoder with head=lm"
        )
    if config.topology == "encoder_decoder" and model.start is None:
        raise ConfigError(f"{where} does not say what its decoder begins with")

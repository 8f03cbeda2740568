"""What a run shows after a validation: texts that go on, are rewritten, filled in or classified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxgen import data
from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.run.settings import Settings
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.session import Session, number_prompts
from jaxgen.tokens import Tokenizer

MASK = "<mask>"  # in a prompt: what is to be filled in
SHOWN = 3  # pieces for each mask
ARROW = " -> "
EXAMPLES = ("pairs", "chat", "policy")  # objectives whose validation text has prompts

Shown = list[tuple[str, str]]  # (what was given, what the model makes of it)


def check(settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
    """Raise ConfigError for prompts that this model can do nothing with.

    template: of a run that learns from chats, where a prompt is what a user says.
    """
    wanted, model = settings.sample, settings.model
    if wanted.prompts and settings.objective.name == "rewards":
        raise ConfigError("sample.prompts have no effect with objective.name=rewards; remove them")
    if wanted.examples and settings.objective.name not in EXAMPLES:
        raise ConfigError(
            f"sample.examples={wanted.examples} has no effect with objective.name="
            f"{settings.objective.name}; give sample.prompts"
        )
    if model.head == "mlm" or (model.topology, model.head) == ("encoder", "lm"):
        for prompt in wanted.prompts:
            if MASK not in prompt:
                raise ConfigError(
                    f"sample.prompts: {prompt!r} has no {MASK}; write it where a word is missing"
                )
        return
    if model.head == "lm":
        session = Session(_model(settings, None, tokenizer), None)
        for prompt in wanted.prompts:
            session.room(_asked(session, prompt, template))


def make(
    settings: Settings,
    tokenizer: Tokenizer,
    corpus: data.Corpus,
    params: Any,
    template: ChatTemplate | None = None,
) -> Shown:
    """Return what the model makes of each prompt, and of the first examples of the validation."""
    prompts = list(settings.sample.prompts)
    if template is None:
        prompts += _sources(settings, tokenizer, corpus)
    known, model = _model(settings, params, tokenizer), settings.model
    if settings.objective.name == "rewards":
        return []
    if template is not None:
        return _answered(settings, known, prompts, corpus, template)
    if not prompts:
        return []
    if model.head == "classes":
        found = tasks.classify(known, prompts, overflow="cut", batch=len(prompts))
        texts = [", ".join(f"{label} {chance:.2f}" for label, chance in row) for row in found]
    elif model.topology == "encoder":
        filled = tasks.fill_mask(known, prompts, best=SHOWN, batch=len(prompts))
        texts = [_filled(masks) for masks in filled]
    else:
        texts = _generated(settings, Session(known, params), prompts)
    if model.topology == "decoder" and model.head == "lm":
        return list(zip(prompts, texts, strict=True))
    return [(f"{prompt}{ARROW}", text) for prompt, text in zip(prompts, texts, strict=True)]


def _model(settings: Settings, params: Any, tokenizer: Tokenizer) -> LoadedModel:
    objective = settings.objective
    return LoadedModel(settings.model, params, tokenizer, objective.start, objective.labels)


def _asked(session: Session, prompt: str, template: ChatTemplate | None) -> str | tuple[int, ...]:
    if template is None:
        return prompt
    return session.chat_ids([{"role": "user", "content": prompt}], template)


def _answered(
    settings: Settings,
    model: LoadedModel,
    prompts: Sequence[str],
    corpus: data.Corpus,
    template: ChatTemplate,
) -> Shown:
    """Return the answers to the prompts, each asked by a user, and to the first validation chats.

    Of a chat all before its first turn that is learnt is asked.
    """
    session, shard = Session(model, model.params), corpus.valid
    shown = [f"{prompt}{ARROW}" for prompt in prompts]
    asked = [_asked(session, prompt, template) for prompt in prompts]
    number = settings.sample.examples if settings.objective.name in EXAMPLES else 0
    for row in range(min(number, shard.documents // 2)):
        begin, middle, end = (int(at) for at in shard.offsets[2 * row : 2 * row + 3])
        last = begin + int(np.argmax(shard.tokens[middle:end]))
        ids = shard.tokens[begin : middle if settings.objective.name == "policy" else last].tolist()
        if len(ids) < settings.row_length:
            asked.append(tuple(ids))
            shown.append(f"{session.tokenizer.decode(ids)}{ARROW}")
    return list(zip(shown, _generated(settings, session, asked), strict=True)) if asked else []


def _generated(
    settings: Settings, session: Session, texts: Sequence[str | tuple[int, ...]]
) -> list[str]:
    asked = []
    for one in number_prompts(texts, settings.sample.request(settings.train.seed)):
        length = min(one.settings.max_new_tokens or 1, session.room(one.text))
        asked.append(one._replace(settings=replace(one.settings, max_new_tokens=length)))
    return [completion.text for (completion,) in session.run(asked)]


def _filled(masks: Sequence[Sequence[tuple[str, float]]]) -> str:
    return " | ".join(
        ", ".join(f"{piece!r} {chance:.2f}" for piece, chance in pieces) for pieces in masks
    )


def _sources(settings: Settings, tokenizer: Tokenizer, corpus: data.Corpus) -> list[str]:
    """Return the first sources of the validation split, cut as far as the model can read."""
    shard, found = corpus.valid, []
    offsets, most = shard.offsets.astype(np.int64), settings.model.context - 2  # bos and eos
    for pair in range(min(settings.sample.examples, shard.documents // 2)):
        ids = shard.tokens[offsets[2 * pair] : offsets[2 * pair + 1]][: most + 1].tolist()
        text = tokenizer.decode(ids)
        while len(tokenizer.encode(text)) > most:
            ids = ids[:-1]
            text = tokenizer.decode(ids)
        found.append(text)
    return [text for text in found if text]

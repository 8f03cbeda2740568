"""Chats as training text: where each turn of the assistant begins and ends, in token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgen.errors import ConfigError, DataError, UserError
from jaxgen.files import read_artifact
from jaxgen.pretrained.chat_template import (
    MAX_BYTES,
    ChatTemplate,
    encode_chat,
    has_chat_template,
    read_chat_template,
)
from jaxgen.pretrained.hub_tokenizer import named_pieces
from jaxgen.run.settings import Settings
from jaxgen.tokens.protocol import Special, Tokenizer

# For a tokenizer that comes without a template: eos alone ends a turn, and no words can be it.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: "
    "{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True, eq=False)
class ChatEncoder:
    """A tokenizer of chats: of each turn the ids before it, and its own."""

    tokenizer: Tokenizer
    template: ChatTemplate

    @property
    def vocab_size(self) -> int:
        """Ids."""
        return self.tokenizer.vocab_size

    @property
    def special(self) -> Special:
        """Of the tokenizer."""
        return self.tokenizer.special

    @property
    def fingerprint(self) -> str:
        """Of tokenizer and template."""
        parts = [self.tokenizer.fingerprint, self.template.source, dict(self.template.names)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return the tokenizer's ids of plain texts."""
        return self.tokenizer.encode_many(texts)

    def encode_documents(self, texts: list[str], draw: Any) -> list[list[int]]:
        """Return, for chats (JSON) and turn numbers alternately, prompt and answer alternately."""
        return [ids for chat, turn in zip(texts[::2], texts[1::2], strict=True)
                for ids in self._turn(json.loads(chat), int(turn))]  # fmt: skip

    def _turn(
        self, messages: Sequence[Mapping[str, Any]], turn: int
    ) -> tuple[list[int], list[int]]:
        prompt = self._encode(messages[:turn])
        whole = self._encode(messages[: turn + 1], answer=False)
        shared = next(
            (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
            min(len(prompt), len(whole)),
        )
        # A template may open the turn otherwise for a model that is to think first; but what came
        # before the turn must be the same, or the model would learn on prompts that it never gets.
        if shared < len(prompt):
            before = self._encode(messages[:turn], answer=False)
            if shared < len(before) or whole[: len(before)] != before:
                raise DataError(
                    f"{self.template.where} changes what comes before turn {turn} of the chat "
                    f"{_short(messages)} once the turn is there, so its beginning is not known; "
                    f"give another objective.template"
                )
        answer, eos = whole[shared:], self.special.eos
        if eos is not None and eos not in answer:
            answer = [*answer, eos]
        return whole[:shared], answer

    def _encode(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> list[int]:
        try:
            return encode_chat(self.template, self.tokenizer, messages, answer=answer)
        except UserError as error:
            raise DataError(f"the chat {_short(messages)} can't be laid: {error}") from error


def template_of(settings: Settings, tokenizer: Tokenizer, folder: Path | None) -> ChatTemplate:
    """Return the template of a run's chats: its own (folder), or what a new run begins with.

    That is objective.template, the one of init_from, or else the plain one. Raises ConfigError if
    that can't be, for want of an eos.
    """
    if folder is not None and has_chat_template(folder):
        return read_chat_template(folder)
    path, source = settings.objective.template, settings.init_from
    of_folder = None
    if source is not None and has_chat_template(source):
        of_folder = read_chat_template(source)
    names = of_folder.names if of_folder else _names(tokenizer)
    if not names and source is not None and source.exists():
        names = named_pieces(source)
    if path is not None:
        try:
            text = read_artifact(path, "chat template", MAX_BYTES).decode()
        except (UserError, UnicodeDecodeError) as error:
            raise ConfigError(f"objective.template={path}: {error}") from error
        return ChatTemplate(text, names, str(path))
    if of_folder is not None:
        return of_folder
    if not names.get("eos_token"):
        raise ConfigError(
            "objective.name=chat needs a tokenizer with an eos, which ends a turn; take "
            "tokenizer.kind=bpe, or init_from"
            if source is None
            else f"init_from={source} has no chat template, and no eos that ends a turn of the "
            f"plain one; give objective.template, a Jinja file"
        )
    return ChatTemplate(PLAIN, names, "the plain template")


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the pieces that templates call by name, of a tokenizer with marks."""
    vocabulary = getattr(tokenizer, "vocabulary", None)
    known = {i: piece for piece, i in vocabulary().items()} if vocabulary else {}
    special = tokenizer.special
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    marks = set(getattr(tokenizer, "marks", list)())
    pieces = {name: known.get(i, "") for name, i in ids.items() if i is not None}
    return {name: piece for name, piece in pieces.items() if piece in marks}


def _short(messages: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps(messages, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."

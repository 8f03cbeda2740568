"""Chats as training text: where each turn of the assistant begins and ends, in token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxgen.data.messages import EXTRA, PROMPT, learnt_turns
from jaxgen.data.parallel import EncodedRecord, Refused
from jaxgen.data.preferences import bytes_as_ids, numbers_as_ids, shared
from jaxgen.errors import ConfigError, MissingPackageError, UserError
from jaxgen.files import read_artifact
from jaxgen.pretrained.chat_template import (
    MAX_BYTES,
    ChatTemplate,
    LaidChat,
    generation_spans,
    has_chat_template,
    has_generation_marks,
    lay_chat,
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
MARKS_WIN = (
    "chats are learnt as the template's {% generation %} marks say, though their assistant turns "
    "alone, as they are asked for, are other tokens"
)
Example = tuple[list[int], list[int]]  # ids, and 1 for each that is learnt


@dataclass(frozen=True, eq=False)
class ChatEncoder:
    """How chats become ids, and a mask of those that the assistant has written."""

    tokenizer: Tokenizer
    template: ChatTemplate

    @property
    def fingerprint(self) -> str:
        """Of tokenizer and template."""
        template = self.template
        parts = ["masks", self.tokenizer.fingerprint, template.sources, dict(template.names)]
        parts += [template.today] if template.today else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def examples(self, chat: Mapping[str, Any]) -> tuple[list[Example], str]:
        """Return the (ids, mask) that a chat is learnt as, and a note.

        Each turn of the assistant is learnt once, after the very ids that it would be asked with.
        Turns share an example as long as the chat before a turn is laid as it was when the turn
        before was learnt; a template that lays it otherwise (Qwen3 drops thoughts) begins another.
        What a template marks as generated is learnt in the place of that.
        """
        parts = _Parts(self, chat)
        if not has_generation_marks(self.template):
            return parts.by_prefixes(), ""
        marked = parts.by_marks()
        try:
            agree = parts.by_prefixes() == [marked]
        except _RefusedError:
            agree = False
        return [marked], "" if agree else MARKS_WIN

    def laid(
        self, chat: Mapping[str, Any], end: int | None = None, *, answer: bool = False
    ) -> LaidChat:
        """Return the text of the messages before `end`; see `lay_chat`."""
        try:
            values = self._values(chat)
            rows = chat["messages"][:end]
            return lay_chat(self.template, self.tokenizer, rows, answer=answer, **values)
        except MissingPackageError:  # which is no fault of the chat
            raise
        except UserError as error:
            raise _RefusedError(Refused("can't be laid", str(error))) from error

    def spans(self, chat: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a chat and what its template marks; see `generation_spans`."""
        return generation_spans(self.template, chat["messages"], answer=False, **self._values(chat))

    def _values(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(chat.get("chat_template_kwargs") or {})
        values |= {"tools": chat["tools"]} if chat.get("tools") else {}
        if self.template.today:
            values["strftime_now"] = datetime.fromisoformat(self.template.today).strftime
        return values

    @cached_property
    def marks(self) -> frozenset[int]:
        """The ids of marks: those that no message can yield."""
        listed: Any = getattr(self.tokenizer, "vocabulary", dict)()
        marks = (listed.get(mark) for mark in getattr(self.tokenizer, "marks", list)())
        return frozenset(i for i in (*marks, self.tokenizer.special.eos) if i is not None)

    def ends_turn(self, ids: Sequence[int]) -> bool:
        """Return whether ids end with a mark, and nothing but blanks after it."""
        for token in reversed(ids):
            if token in self.marks:
                return True
            if self.tokenizer.decode([token]).strip():
                return False
        return False

    def is_silent(self, ids: Sequence[int]) -> bool:
        """Return whether ids are marks and blanks alone."""
        return all(i in self.marks or not self.tokenizer.decode([i]).strip() for i in ids)


@dataclass(frozen=True, eq=False)
class RecordEncoder:
    """A tokenizer of records as JSON, each of which becomes several documents of a shard.

    chats: lays messages; None where the tokenizer has no eos, and all records are plain texts.
    objective: chat: ids and a mask of each text that is learnt; preferences, rewards, feedback: ids
    and a mask of each completion with its prompt, then a number; policy: ids of a prompt, then the
    record.
    """

    tokenizer: Tokenizer
    chats: ChatEncoder | None
    objective: str

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
        chats = self.chats.fingerprint if self.chats else ""
        kind = self.objective if self.objective == "policy" else "preferences"
        parts = [kind, self.tokenizer.fingerprint, chats]
        whole = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return chats if self.objective == "chat" else whole

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return the tokenizer's ids of plain texts."""
        return self.tokenizer.encode_many(texts)

    def encode_records(self, texts: list[str]) -> list[EncodedRecord | Refused]:
        """Return the documents of each record."""
        return [self._record(json.loads(text)) for text in texts]

    def _record(self, record: Mapping[str, Any]) -> EncodedRecord | Refused:
        read = {"chat": self._chat, "policy": self._prompt}.get(self.objective, self._sides)
        try:
            return read(record)
        except _RefusedError as error:
            return error.args[0]

    def _chat(self, chat: Mapping[str, Any]) -> EncodedRecord | Refused:
        assert self.chats is not None
        examples, note = self.chats.examples(chat)
        if not any(any(mask) for _, mask in examples):
            return Refused("nothing to learn", "no token of the chat is the assistant's")
        return EncodedRecord([ids for example in examples for ids in example], note)

    def _sides(self, record: Mapping[str, Any]) -> EncodedRecord | Refused:
        documents: list[list[int]] = []
        for prompt, completion in record["sides"]:
            documents += self.example(prompt, completion, record)
        if not all(any(mask) for mask in documents[1::2]):
            return Refused("nothing to judge", "a completion has no token of its own")
        if len(documents) == 4 and documents[0] == documents[2]:
            return Refused("equal", "chosen and rejected are the same tokens")
        return EncodedRecord([*documents, numbers_as_ids(record["numbers"])])

    def _prompt(self, record: Mapping[str, Any]) -> EncodedRecord | Refused:
        prompt = record[PROMPT]
        if isinstance(prompt, str):
            ids = [*self._bos, *self.encode_many([prompt])[0]]
        else:
            ids = self._parts(prompt, record).encode(len(prompt), answer=True)
        raw = json.dumps(record, ensure_ascii=False).encode()
        return EncodedRecord([ids, bytes_as_ids(raw)])

    @property
    def _bos(self) -> list[int]:
        return [] if self.special.bos is None else [self.special.bos]

    def _parts(self, messages: Sequence[Any], record: Mapping[str, Any]) -> _Parts:
        if self.chats is None:
            raise _RefusedError(Refused("messages", "messages need a tokenizer with an eos"))
        more = {name: record[name] for name in EXTRA if name in record}
        return _Parts(self.chats, {"messages": list(messages), **more})

    def example(self, prompt: Any, completion: Any, record: Mapping[str, Any]) -> Example:
        """Return (ids, mask) of a prompt and its completion, where the two part in token ids."""
        if not isinstance(prompt, str):
            return self._parts([*prompt, *completion], record).after(len(prompt))
        known, whole = (
            [*self._bos, *ids] for ids in self.encode_many([prompt, prompt + completion])
        )
        after = [] if self.special.eos is None else [self.special.eos]
        begin, whole = max(shared(known, whole), 1), [*whole, *after]
        return whole, [0] * begin + [1] * (len(whole) - begin)


class _RefusedError(Exception):
    """A chat can't be learnt: its argument says why."""


@dataclass(frozen=True, eq=False)
class _Parts:
    """A chat, and what of it is learnt."""

    encoder: ChatEncoder
    chat: Mapping[str, Any]

    def by_prefixes(self) -> list[Example]:
        """Return examples by comparing how the chat is laid up to a turn, and with it."""
        encoder, examples = self.encoder, []
        ids, mask, said = [], [], 0  # said: where the last turn begins
        for turn in learnt_turns(self.chat):
            whole = self.encode(turn + 1)
            begin = self._begin(turn, whole)
            if ids:
                goes_on = shared(ids, whole)
                rest = ids[goes_on:]
                if encoder.ends_turn(ids[said:goes_on]) and encoder.is_silent(rest):
                    ids, mask = ids[:goes_on], mask[:goes_on]
                else:
                    examples.append(self._ended(ids, mask, said))
                    ids, mask = [], []
            mask = [*mask, *[0] * (begin - len(mask)), *[1] * (len(whole) - begin)]
            ids, said = whole, begin
        return [*examples, self._ended(ids, mask, said)]

    def by_marks(self) -> Example:
        """Return the chat as one example, of which what the template marks is learnt."""
        encoder = self.encoder
        laid = encoder.laid(self.chat)
        text, spans = encoder.spans(self.chat)
        if text != laid.text:
            raise _RefusedError(
                Refused("can't be laid", f"{encoder.template.where} cuts its own generation marks")
            )
        whole = laid.encode(encoder.tokenizer)
        mask = [0] * len(whole)
        for low, high in spans:
            begin = shared(laid.encode(encoder.tokenizer, low), whole)
            head = laid.encode(encoder.tokenizer, high)
            end = shared(head, whole)
            end += end < len(head) and end < len(whole)  # a token that reaches over the end
            ended = encoder.ends_turn(whole[begin:end])
            end += not ended and end < len(whole) and whole[end] in encoder.marks
            mask[begin:end] = [1] * (end - begin)
        turns = set(learnt_turns(self.chat))
        for turn, row in enumerate(self.chat["messages"]):
            if row["role"] == "assistant" and turn not in turns and any(mask):
                begin = shared(self.encode(turn, answer=True), whole) if turn else 0
                end = shared(self.encode(turn + 1), whole)
                mask[begin:end] = [0] * (end - begin)
        return self._ended(whole, mask, mask.index(1)) if mask[-1] else (whole, mask)

    def after(self, turn: int) -> Example:
        """Return the chat as one example, of which all from a message on is learnt."""
        whole = self.encode(len(self.chat["messages"]))
        begin = self._begin(turn, whole)
        return self._ended(whole, [0] * begin + [1] * (len(whole) - begin), begin)

    def _ended(self, ids: list[int], mask: list[int], said: int) -> Example:
        """Return an example whose last turn ends, with an eos where its template has no mark."""
        eos = self.encoder.tokenizer.special.eos
        if eos is None or self.encoder.ends_turn(ids[said:]):
            return ids, mask
        return [*ids, eos], [*mask, 1]

    def _begin(self, turn: int, whole: list[int]) -> int:
        """Return where a turn begins in the ids of the chat that ends with it."""
        prompt = self.encode(turn, answer=True)
        begin = shared(prompt, whole)
        # A template may open the turn otherwise for a model that is to think first; but what came
        # before the turn must be the same, or the model would learn on prompts that it never gets.
        if begin < len(prompt):
            before = self.encode(turn)
            if begin < len(before) or whole[: len(before)] != before:
                raise _RefusedError(
                    Refused(
                        "changed by its answer",
                        f"{self.encoder.template.where} changes what comes before message {turn} "
                        f"once it is there, so that its beginning is not known; give another "
                        f"objective.template",
                    )
                )
        return begin

    def encode(self, end: int, *, answer: bool = False) -> list[int]:
        """Return the ids of the messages before `end`, and of what opens an answer."""
        return self.encoder.laid(self.chat, end, answer=answer).encode(self.encoder.tokenizer)


def template_of(settings: Settings, tokenizer: Tokenizer, folder: Path | None) -> ChatTemplate:
    """Return the template of a run's chats: its own (folder), or what a new run begins with.

    That is objective.template, the one of init_from, or else the plain one; if it writes the date,
    with that of today, which the run keeps. Raises ConfigError if that can't be, for want of an
    eos.
    """
    if folder is not None and has_chat_template(folder):
        return read_chat_template(folder)
    template = _new_template(settings, tokenizer)
    if "strftime_now" in template.sources:
        template = template._replace(today=date.today().isoformat())
    return template


def encoder_of(settings: Settings, tokenizer: Tokenizer, folder: Path | None) -> RecordEncoder:
    """Return the encoder of a run's records; raises what `template_of` raises."""
    chats, name = None, settings.objective.name
    try:
        chats = ChatEncoder(tokenizer, template_of(settings, tokenizer, folder))
    except ConfigError:
        if name == "chat" or settings.objective.template is not None:
            raise
    return RecordEncoder(tokenizer, chats, name)


def _new_template(settings: Settings, tokenizer: Tokenizer) -> ChatTemplate:
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

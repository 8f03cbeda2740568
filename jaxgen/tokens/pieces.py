"""sentencepiece: models trained here, and any `.model` made elsewhere."""

from __future__ import annotations

import io
import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from typing import Any

from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.tokens import folder, protocol
from jaxgen.tokens.dropout import split_with_dropout
from jaxgen.tokens.modelproto import read_normalizer, with_short_scores, without_rule_file
from jaxgen.tokens.protocol import Special, Surface
from jaxgen.tokens.settings import TokenizerSettings

SPACE = "\u2581"  # how sentencepiece writes a space, and so the one character it can't tell from it
BLOCK = 1 << 16  # characters encoded at once
LINE = 2048  # characters of a training sentence
RESERVED = re.compile("[\n\r\t\0\u2581\u2585]")  # sentencepiece drops training lines with the last
QUIET = 3  # only fatal messages
MAX_VOCAB = 10_000_000


def _library() -> Any:
    import sentencepiece

    sentencepiece.set_min_log_level(QUIET)
    return sentencepiece


class Pieces:
    """A sentencepiece model.

    Models trained here are exact: decode(encode(text)) == text for every text, as for any model
    that normalises nothing and has all bytes. Others return what their normaliser makes of it.
    """

    def __init__(self, model: bytes, special: Special | None = None) -> None:
        """special: which ids play these roles; None takes those that the model declares.

        Raises CheckpointError if the bytes are no sentencepiece model.
        """
        try:
            self._normalizer = read_normalizer(model)
            self._processor = _library().SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else "it can't be parsed"
            raise CheckpointError(
                f"no sentencepiece model, or a truncated one ({reason}); fetch it again"
            ) from error
        self.model, self.vocab_size = model, self._processor.vocab_size()
        if not 0 < self.vocab_size <= MAX_VOCAB:
            raise CheckpointError(f"a vocabulary of {self.vocab_size} pieces; fetch it again")
        self.special = self._declared() if special is None else special
        for name, token in vars(self.special).items():
            if token is not None and not 0 <= token < self.vocab_size:
                raise CheckpointError(f"{name}={token} is outside its {self.vocab_size} pieces")
        self.fingerprint = protocol.fingerprint("sentencepiece", model, self.special)
        self._table()

    def _declared(self) -> Special:
        ids = {name: getattr(self._processor, f"{name}_id")() for name in ("bos", "eos", "pad")}
        return Special(**{name: None if i < 0 else i for name, i in ids.items()})

    def _table(self) -> None:
        processor, normalizer = self._processor, self._normalizer
        names = [processor.id_to_piece(i) for i in range(self.vocab_size)]
        pieces, silent = [], {i for i in vars(self.special).values() if i is not None}
        for i, name in enumerate(names):
            if i in silent or processor.is_control(i):
                pieces.append(b"")
            elif processor.is_byte(i):
                pieces.append(bytes([int(name[3:5], 16)]))
            elif processor.is_unknown(i):
                pieces.append(" \u2047 ".encode())  # what sentencepiece itself decodes it to
            else:
                pieces.append(name.replace(SPACE, " ").encode())
        space_before = normalizer.dummy_prefix and not normalizer.suffix
        # A model whose pieces end in spaces drops its space at the end: not a join of pieces.
        suffixed = normalizer.dummy_prefix and normalizer.suffix
        self.surface = None if suffixed else Surface(tuple(pieces), space_before)
        self.byte_lengths = Surface(tuple(pieces)).lengths()
        by_byte = [i for i in range(self.vocab_size) if processor.is_byte(i)]
        self._byte_ids = {pieces[i][0]: i for i in by_byte}
        lines = all("\n" not in name or len(name) == 1 for name in names)
        self._exact = normalizer.keeps_all and lines and len(self._byte_ids) == 256
        self._newline = processor.encode("\n") if self._exact else []
        self._bar = [self._byte_ids[byte] for byte in SPACE.encode()] if self._exact else []

    @property
    def exact(self) -> bool:
        """Return whether every text comes back as it was (in small letters, if trained so)."""
        return self._exact

    def normalize(self, text: str) -> str:
        """Return what the model makes of a text before it looks for pieces."""
        return self._processor.normalize(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids; DataError for a lone surrogate."""
        try:
            if not self._exact:
                return self._processor.encode(text)
            return self._encode_exactly(text)
        except (UnicodeEncodeError, TypeError):  # the latter from a list of texts
            # The error of a block counts from the block's start.
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise protocol.not_unicode(text, error) from None
            raise

    def _encode_exactly(self, text: str) -> list[int]:
        lines = text.split("\n")
        if SPACE in text or len(text) > BLOCK:
            rows = [self._encode_line(line) for line in lines]
        else:
            rows = self._processor.encode(lines, num_threads=1)
        ids: list[int] = list(rows[0])
        for row in rows[1:]:
            ids += self._newline
            ids += row
        return ids

    def _encode_line(self, line: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(line.split(SPACE)):
            ids += self._bar if number else []
            for block in _blocks(part, BLOCK):
                ids += self._processor.encode(block)
        return ids

    def pieces_of(self, text: str) -> list[str]:
        """Return the pieces of a text by name; DataError for a lone surrogate."""
        try:
            return self._processor.encode(text, out_type=str)
        except UnicodeEncodeError as error:
            raise protocol.not_unicode(text, error) from None

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_with_dropout(self, texts: list[str], dropout: float, seed: int) -> list[list[int]]:
        """Return the ids of each text where a BPE model leaves out merges by chance (`dropout`).

        For models trained here. sentencepiece's own draws differ from process to process, whatever
        its seed (seen in 0.2.3); here the seed decides the ids.
        """
        chance = random.Random(seed)  # noqa: S311  no secret
        return [self._draw(text, dropout, chance) for text in texts]

    def _draw(self, text: str, dropout: float, chance: random.Random) -> list[int]:
        ids: list[int] = []
        parts = text.split(SPACE) if self._exact else [self._processor.normalize(text)]
        for number, part in enumerate(parts):
            ids += self._bar if number else []
            for piece in split_with_dropout(part.replace(" ", SPACE), self._ranks, dropout, chance):
                rank = self._ranks.get(piece)
                ids += [self._byte_ids[b] for b in piece.encode()] if rank is None else [rank]
        return ids

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """The ids of pieces that are text, which are in order of a BPE model's merges."""
        processor = self._processor
        return {
            processor.id_to_piece(i): i
            for i in range(self.vocab_size)
            if not (processor.is_control(i) or processor.is_byte(i) or processor.is_unknown(i))
        }

    def encode_marked(self, text: str, *, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Return the ids of a text in which control pieces, written out, are those pieces.

        plain: spans [begin, end) of the text in which they are only text.
        """
        ids: list[int] = []
        marks = [re.escape(name) for name in sorted(self.marks(), key=len, reverse=True)]
        for part, mark in protocol.marked(text, marks, plain):
            ids += [self._processor.piece_to_id(part)] if mark else self.encode(part)
        return ids

    def marks(self) -> list[str]:
        """Return the control pieces."""
        control = self._processor.is_control
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size) if control(i)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids have none. DataError for an id out of range."""
        ids = [int(token) for token in ids]
        if self.surface:
            return self.surface.decode(ids)
        protocol.check_ids(ids, self.vocab_size)
        return self._processor.decode(ids)

    def vocabulary(self) -> dict[str, int]:
        """Return {piece: id}."""
        return {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}

    def __reduce__(self) -> Any:
        # A process that tokenises gets the model and builds its own engine.
        return Pieces, (self.model, self.special)

    def save(self, path: str | PathLike) -> None:
        """Write a new folder with the model, which other programs read as well."""
        folder.save_folder(path, "sentencepiece", ("tokenizer.model", self.model), self)


def learn_pieces(settings: TokenizerSettings, texts: Iterable[str]) -> Pieces:
    """Return a bpe or unigram tokenizer with byte fallback, trained on `texts`.

    Raises ConfigError for a vocab_size that is too small or more than the texts support,
    DataError if they hold nothing to learn from.
    """
    buffer = io.BytesIO()
    with _rule(settings.lowercase) as rule:
        _train(settings, texts, buffer, rule)
    model = without_rule_file(buffer.getvalue())
    return Pieces(with_short_scores(model) if settings.kind == "unigram" else model)


def _train(
    settings: TokenizerSettings, texts: Iterable[str], buffer: io.BytesIO, rule: dict[str, str]
) -> None:
    try:
        _library().SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts, settings.max_bytes),
            model_writer=buffer,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            **rule,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=8 * LINE,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            # Unigram sums floats per thread: the number decides the result, so it is fixed.
            num_threads=4,
            minloglevel=QUIET,
        )
    except RuntimeError as error:
        raise _why(settings.vocab_size, str(error)) from error


@contextmanager
def _rule(lowercase: bool) -> Iterator[dict[str, str]]:
    """Yield how the trainer is told what becomes of characters: nothing, or their small form."""
    if not lowercase:
        yield {"normalization_rule_name": "identity"}
        return
    letters = (chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        for letter in letters:
            if letter.lower() != letter:
                file.write(f"{ord(letter):X}\t{' '.join(f'{ord(c):X}' for c in letter.lower())}\n")
        file.flush()
        yield {"normalization_rule_tsv": file.name}


class VocabularySizeError(ConfigError):
    """A text has no tokenizer of this size; `works` is the nearest that it has."""

    def __init__(self, size: int, works: int) -> None:
        problem, end = ("is larger than the text supports", "largest")
        if works > size:
            problem, end = ("is too small for the characters of the text", "smallest")
        super().__init__(f"tokenizer.vocab_size={size} {problem}; the {end} that works is {works}")
        self.works = works


def _why(size: int, message: str) -> Exception:
    # Unigram keeps whole characters, also beyond what was asked.
    for pattern in (r"value <= (\d+)", r"required_chars\. \d+ vs (\d+)"):
        if match := re.search(pattern, message):
            return VocabularySizeError(size, int(match[1]))
    if "sentences_.empty()" in message:
        return DataError("the corpus has no text to learn a tokenizer from")
    return DataError(f"sentencepiece can't learn from the corpus: {message}")


def _sentences(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield non-empty training lines, `max_bytes` of UTF-8 in all at most (and one line)."""
    room = max_bytes
    for text in texts:
        for line in RESERVED.split(text):
            for block in _blocks(line, LINE):
                if not block:
                    continue
                try:
                    room -= len(block.encode())
                except UnicodeEncodeError as error:
                    raise protocol.not_unicode(block, error) from None
                yield block
                if room <= 0:
                    return


def _blocks(line: str, size: int) -> Iterator[str]:
    """Yield `line` in parts of at most `size`, cut before a space where there is one."""
    while len(line) > size:
        cut = line.rfind(" ", size // 2, size)
        while cut > 1 and line[cut - 1] == " ":
            cut -= 1
        cut = size if cut <= 1 else cut
        yield line[:cut]
        line = line[cut:]
    yield line

"""Hugging Face `tokenizer.json` files, through the `tokenizers` library (extra [hf])."""

from __future__ import annotations

import json
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from os import PathLike
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError, DataError, MissingPackageError
from jaxgen.tokens import folder, piece_bytes, protocol
from jaxgen.tokens.pair import Pair, TokenSpan, check_room, goes_on
from jaxgen.tokens.protocol import Special, Surface

MAX_VOCAB = 10_000_000
# An engine is in one of two modes, and threads share it: of a text it may never be in the other.
_MODE = threading.Lock()


class HuggingFace:
    """A tokenizer.json; special pieces written out in a text are encoded as ordinary text."""

    def __init__(
        self,
        model: bytes,
        special: Special | Callable[[HuggingFace], Special] | None = None,
        *,
        roles: Mapping[str, str] | None = None,
        added: Sequence[Mapping[str, Any]] = (),
        vocab_size: int | None = None,
    ) -> None:
        """special: which ids play these roles, or what tells them of this tokenizer without any;
        a tokenizer.json itself declares none.

        roles: {"mask_token": "[MASK]", ...} as tokenizer_config.json names pieces for other
        programs. added: rows as of `added_tokens`, which come after the file's own or change the
        flags of theirs. vocab_size: ids that its model knows, None for all; a text that needs
        another is refused. Raises CheckpointError if it can't be read or two pieces share an id;
        ConfigError if `tokenizers` is not installed.
        """
        self.roles = dict(roles or {})
        about = _parse(model)
        declared = _declared(about)
        self._engine = _build(model)
        if _extend(self._engine, added):
            model = self._engine.to_str().encode()
            about = _parse(model)
        self._engine.no_truncation()
        self._engine.no_padding()
        self.model = model
        self._vocabulary = self._engine.get_vocab(with_added_tokens=True)
        self._names = _names(self._vocabulary, declared)
        self._count = max(self._names) + 1
        self.vocab_size = self._count if vocab_size is None else min(vocab_size, self._count)
        self.special = special(self) if callable(special) else special or Special()
        self.fingerprint = protocol.fingerprint("hf", model, self.special)
        for name, token in vars(self.special).items():
            if token is not None and not (token in self._names and token < self.vocab_size):
                raise CheckpointError(f"{name}={token} is outside its {self.vocab_size} pieces")
        silent = [self._names[i] for i in vars(self.special).values() if i is not None]
        _silence(self._engine, silent)
        self._engine.encode_special_tokens = True
        rows = about.get("added_tokens") or []
        self._silent = {*silent, *(row["content"] for row in rows if row.get("special"))}

    @property
    def surface(self) -> Surface | None:
        """The bytes of each id; None where decoding is not joining them."""
        whole, joined = self._surface
        return whole if joined else None

    @property
    def byte_lengths(self) -> np.ndarray:
        """The number of bytes that each id stands for."""
        return self._lengths

    # These walk through all pieces, and few uses ask for them.
    @cached_property
    def _lengths(self) -> np.ndarray:
        return (self._surface[0] or self._separate()).lengths()

    @cached_property
    def _surface(self) -> tuple[Surface | None, bool]:
        """Return (the bytes of each id, if they are known; whether decoding is joining them)."""
        decoder = self._engine.decoder
        # As the library read it: in its own spelling, with all defaults.
        steps = [] if decoder is None else piece_bytes.steps(json.loads(decoder.__getstate__()))
        read = piece_bytes.reader(steps)
        if read is None:
            return None, False
        names = [self._names.get(i, "") for i in range(self.vocab_size)]
        pieces = tuple(b"" if name in self._silent else read(name) for name in names)
        drops = piece_bytes.drops_space(steps)
        # Metaspace drops all marks of a text's first piece and keeps a space that is none, where
        # a Surface drops one space.
        mark = steps[0].get("replacement") if drops else None
        odd = mark and any(
            name.startswith(" ") or mark in name.removeprefix(mark) for name in names
        )
        return Surface(pieces, drops), not odd

    def _separate(self) -> Surface:
        # The continuation mark of WordPiece is no text; other words bring the space before them.
        decode = self._engine.decode
        words = (_guard(CheckpointError, decode, [i]) for i in range(self.vocab_size))
        return Surface(tuple(word.removeprefix("##").encode() for word in words))

    def encode(self, text: str) -> list[int]:
        """Return the ids, without bos or eos; DataError for a lone surrogate."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        texts = list(texts)
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise protocol.not_unicode(text, error) from None
        encode = self._engine.encode_batch
        with _MODE:
            rows = _guard(DataError, encode, texts, add_special_tokens=False)
        return [self._check_ids(row.ids) for row in rows]

    def _check_ids(self, ids: list[int]) -> list[int]:
        if self.vocab_size < self._count and ids and max(ids) >= self.vocab_size:
            wrong = max(ids)
            raise DataError(
                f"the text needs the piece {self._names[wrong]!r} of id {wrong}, but the model "
                f"has {self.vocab_size} rows; remove it from the text"
            )
        return ids

    def around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the file's own template puts before a text, and after it."""
        inner = self._engine.encode("a", add_special_tokens=False).ids
        whole = self._engine.encode("a", add_special_tokens=True).ids
        spots = range(len(whole) - len(inner) + 1)
        at = next((i for i in spots if whole[i : i + len(inner)] == inner), len(whole))
        return whole[:at], whole[at + len(inner) :]

    def encode_marked(self, text: str, *, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Return the ids of a text in which special pieces, written out, are those pieces.

        plain: spans [begin, end) of the text in which they are only text.
        """
        if not plain:
            with _MODE:
                self._engine.encode_special_tokens = False
                try:
                    return self._check_ids(_guard(DataError, self._engine.encode, text,
                                              add_special_tokens=False).ids)  # fmt: skip
                finally:
                    self._engine.encode_special_tokens = True
        # One pass over the whole text, for pieces depend on what is around them: marks that are
        # meant are spelled in a way that nobody can guess, as pieces that are not special.
        stand_ins, engine = self._stand_ins
        pieces = sorted(self._special_pieces(), key=lambda token: -len(token.content))
        meant = protocol.marked(text, [_pattern(token) for token in pieces], plain)
        spelled = "".join(stand_ins[part] if mark else part for part, mark in meant)
        ids = _guard(DataError, engine.encode, spelled, add_special_tokens=False).ids
        own = {engine.token_to_id(stand_ins[name]): self._vocabulary[name] for name in stand_ins}
        return self._check_ids([own.get(token, token) for token in ids])

    @cached_property
    def _stand_ins(self) -> tuple[dict[str, str], Any]:
        """Return ({mark: its stand-in}, an engine that takes stand-ins alone for marks)."""
        import tokenizers

        engine = _build(self._engine.to_str().encode())
        engine.encode_special_tokens = True
        secret = secrets.token_hex(8)
        stand_ins, rows = {}, []
        for number, token in enumerate(self._special_pieces()):
            stand_ins[token.content] = f"\U000f0000{secret}{number}\U000f0001"
            rows.append(tokenizers.AddedToken(
                stand_ins[token.content], special=False, normalized=False, lstrip=token.lstrip,
                rstrip=token.rstrip, single_word=token.single_word,
            ))  # fmt: skip
        engine.add_tokens(rows)
        return stand_ins, engine

    def _special_pieces(self) -> list[Any]:
        added = self._engine.get_added_tokens_decoder()
        return [token for _, token in sorted(added.items()) if token.special]

    def marks(self) -> list[str]:
        """Return the pieces that only `encode_marked` takes for more than text."""
        return [token.content for token in self._special_pieces()]

    def windows(self, first: str, second: str, width: int, stride: int) -> list[Pair]:
        """Return the rows of two texts, laid as the file declares; see `tokens.pair.pairs`."""
        engine = self._engine
        whole = _guard(DataError, engine.encode, first, "", add_special_tokens=True)
        check_room(first, len(whole.ids), width - len(whole.ids), stride)
        engine.enable_truncation(width, stride=stride, strategy="only_second")
        try:
            row = _guard(DataError, engine.encode, first, second, add_special_tokens=True)
        finally:
            engine.no_truncation()
        return [_pair(part) for part in (row, *row.overflowing)]

    def locate(self, text: str) -> list[TokenSpan]:
        """Return where each token of a text comes from; see `tokens.pair.locate`."""
        row = _guard(DataError, self._engine.encode, text, add_special_tokens=False)
        # Only models whose pieces are marked inside of words know where one goes on.
        marked = getattr(self._engine.model, "continuing_subword_prefix", None)
        unknown = getattr(self._engine.model, "unk_token", None)
        spans = []
        for name, (begin, end) in zip(row.tokens, row.offsets, strict=True):
            inside = len(name) != end - begin if marked else goes_on(text, begin)
            spans.append(TokenSpan(begin, end, inside and name != unknown))
        return spans

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids have none. DataError for an id out of range."""
        ids = [int(token) for token in ids]
        if self.surface:
            return self.surface.decode(ids)
        protocol.check_ids(ids, self.vocab_size)
        return _guard(DataError, self._engine.decode, ids, skip_special_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """Return {piece: id}."""
        return self._vocabulary

    def __reduce__(self) -> Any:
        # A process that tokenises gets the model and builds its own engine.
        about = {"roles": self.roles, "vocab_size": self.vocab_size}
        return partial(HuggingFace, **about), (self.model, self.special)

    def save(self, path: str | PathLike) -> None:
        """Write a new folder with the file, which other programs read as well."""
        folder.save_folder(path, "hf", ("tokenizer.json", self.model), self)


def _pattern(token: Any) -> str:
    name = re.escape(token.content)
    return rf"(?<!\w){name}(?!\w)" if token.single_word else name


def _pair(row: Any) -> Pair:
    """Return a row of the library; a token's characters are those of its word."""
    words: dict[int, tuple[int, int]] = {}
    own = [side == 1 for side in row.sequence_ids]
    for mine, word, (begin, end) in zip(own, row.word_ids, row.offsets, strict=True):
        if mine and word is not None:
            low, high = words.get(word, (begin, end))
            words[word] = min(low, begin), max(high, end)
    spans = [
        (words[word] if word is not None else offsets) if mine else None
        for mine, word, offsets in zip(own, row.word_ids, row.offsets, strict=True)
    ]
    return Pair(row.ids, row.type_ids, spans)


def _parse(model: bytes) -> dict[str, Any]:
    try:
        about = json.loads(model, object_pairs_hook=files.once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not a tokenizer.json: {error}; fetch it again") from error
    if not isinstance(about, dict) or not isinstance(about.get("model"), dict):
        raise CheckpointError("not a tokenizer.json: it has no `model` section")
    return about


def _declared(about: dict[str, Any]) -> dict[str, int]:
    """Return {piece: id} as the file says of its model and its added tokens."""
    vocabulary = about["model"].get("vocab")
    try:
        if isinstance(vocabulary, list):  # unigram: [piece, score] in the order of ids
            ids = {row[0]: i for i, row in enumerate(vocabulary)}
            if len(ids) < len(vocabulary):
                raise CheckpointError("its unigram vocabulary holds a piece twice")
        else:
            ids = dict(vocabulary)
        ids |= {row["content"]: row["id"] for row in about.get("added_tokens") or []}
    except (TypeError, KeyError, IndexError) as error:
        raise CheckpointError("not a tokenizer.json: its vocabulary is malformed") from error
    if not ids:
        raise CheckpointError("its vocabulary is empty; fetch it again")
    names: dict[int, str] = {}
    for name, i in ids.items():
        if type(i) is not int or not 0 <= i < MAX_VOCAB:
            raise CheckpointError(f"piece {name!r} has id {i!r}; ids are 0 .. {MAX_VOCAB - 1}")
        if i in names:
            raise CheckpointError(f"pieces {names[i]!r} and {name!r} share id {i}")
        names[i] = name
    return ids


def _names(vocabulary: Mapping[str, int], declared: Mapping[str, int]) -> dict[int, str]:
    """Return {id: piece} as the library numbers them: it ignores the ids of added tokens."""
    names: dict[int, str] = {}
    for name, i in vocabulary.items():
        if i in names:
            raise CheckpointError(
                f"its ids have a hole, so that the library gives {names[i]!r} and {name!r} "
                f"both id {i}; fill the hole"
            )
        names[i] = name
    moved = [name for name, i in declared.items() if vocabulary.get(name, i) != i]
    if moved:
        warnings.warn(
            f"its ids have a hole: {moved[0]!r} is id {declared[moved[0]]} in the file, but the "
            f"tokenizers library, and so transformers, makes it {vocabulary[moved[0]]}",
            stacklevel=4,
        )
    return names


def _extend(engine: Any, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Add pieces, or change the flags of those that are there; return whether anything changed."""
    if not rows:
        return False
    import tokenizers

    known = {t.content: t for t in engine.get_added_tokens_decoder().values()}
    flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
    changed = []
    for row in rows:
        token = tokenizers.AddedToken(row["content"], **{name: row[name] for name in flags})
        old = known.get(token.content)
        if old is None or any(getattr(old, name) != row[name] for name in flags):
            changed.append(token)
    if changed:
        _guard(CheckpointError, engine.add_tokens, changed)
    return bool(changed)


def _silence(engine: Any, names: Sequence[str]) -> None:
    """Make pieces special, with the flags they have: no text yields them, and they have none."""
    import tokenizers

    known = {t.content: t for t in engine.get_added_tokens_decoder().values()}
    for name in names:
        old = known.get(name)
        if old is not None and old.special:
            continue
        flags = {} if old is None else {
            flag: getattr(old, flag) for flag in ("lstrip", "rstrip", "single_word")
        }  # fmt: skip
        engine.add_special_tokens(
            [tokenizers.AddedToken(name, special=True, normalized=False, **flags)]
        )


def _build(model: bytes) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError(
            "a tokenizer.json needs the `tokenizers` package: pip install 'jaxgen[hf]'"
        ) from error
    return _guard(CheckpointError, tokenizers.Tokenizer.from_str, model.decode())


def _guard(kind: type[Exception], function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # PanicException, of Rust, is no Exception
        raise kind(f"the tokenizers library refuses: {' '.join(str(error).split())}") from error

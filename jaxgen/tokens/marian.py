"""Marian's tokenizer: a sentencepiece model for each side, and one vocabulary of its own ids.

M2M-100's is one of them with one model for both sides, and languages after the vocabulary.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.tokens import folder, protocol
from jaxgen.tokens.pieces import SPACE, Pieces
from jaxgen.tokens.protocol import Special

SOURCE, TARGET, VOCAB = "source.spm", "target.spm", "vocab.json"
ONE_MODEL = "sentencepiece.bpe.model"  # of M2M-100
UNKNOWN, SILENT = "<unk>", ("<unk>", "</s>", "<pad>")
# Of transformers' M2M100Tokenizer, by its `language_codes`, in the order of their ids.
LANGUAGES = {
    "m2m100": "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga "
    "gd gl gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml "
    "mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn "
    "tr uk ur uz vi wo xh yi yo zh zu",
    "wmt21": "en ha is ja cs ru zh de",
}


class Marian:
    """Sources to ids and ids to targets, as transformers' MarianTokenizer (one shared vocabulary).

    A source may begin with the code of a language, as ">>fra<<", which is one id.
    """

    surface = None

    def __init__(self, model: bytes, special: Special | None = None) -> None:
        """model: as `packed` makes it. Raises CheckpointError if a part is damaged."""
        self.model, self.special = model, special or Special()
        try:
            about = json.loads(model)
            sides = [base64.b64decode(about[name]) for name in ("source", "target")]
            known, self._marks = about["vocab"], about.get("marks", [])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"no Marian tokenizer: {error!r}; fetch it again") from error
        self._source, self._target = (Pieces(side) for side in sides)
        self._known = _checked(known)
        self._names = {i: name for name, i in self._known.items()}
        self.vocab_size = len(self._known)
        for name, token in vars(self.special).items():
            if token is not None and token not in self._names:
                raise CheckpointError(f"{name}={token} is outside its {self.vocab_size} pieces")
        self.fingerprint = protocol.fingerprint("marian", model, self.special)
        texts = [self._text(i).encode() for i in range(self.vocab_size)]
        self.byte_lengths = np.asarray([len(text) for text in texts], np.int32)

    def _text(self, token: int) -> str:
        name = self._names[token]
        silent = name in (*SILENT, *self._marks) or token in vars(self.special).values()
        return "" if silent else name.replace(SPACE, " ")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a source, without eos; DataError for a lone surrogate."""
        return self._ids(text, self._source)

    def encode_target(self, text: str) -> list[int]:
        """Return the ids of a target, without eos."""
        return self._ids(text, self._target)

    def _ids(self, text: str, side: Pieces) -> list[int]:
        code, end = [], text.find("<<")
        if text.startswith(">>") and end != -1 and not self._marks:
            code, text = [text[: end + 2]], text[end + 2 :]
        unknown = self._known[UNKNOWN]
        return [self._known.get(piece, unknown) for piece in (*code, *side.pieces_of(text))]

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each source."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of target ids, without spaces around it; DataError if out of range."""
        ids = [int(token) for token in ids]
        protocol.check_ids(ids, self.vocab_size)
        return "".join(map(self._text, ids)).strip()

    def vocabulary(self) -> dict[str, int]:
        """Return {piece: id}."""
        return self._known

    def marks(self) -> list[str]:
        """Return the pieces of languages, which no text yields."""
        codes = [name for name in self._known if name.startswith(">>") and name.endswith("<<")]
        return self._marks or codes

    def __reduce__(self) -> Any:
        return Marian, (self.model, self.special)

    def save(self, path: str | PathLike) -> None:
        """Write a new folder with both models and the vocabulary in one file."""
        folder.save_folder(path, "marian", ("marian.json", self.model), self)

    def parts(self) -> dict[str, bytes]:
        """Return {file name: content} as other programs read it."""
        own = {name: i for name, i in self._known.items() if not _is_language(name, self._marks)}
        vocab = json.dumps(own, ensure_ascii=False, indent=2) + "\n"
        if self._marks:
            return {ONE_MODEL: self._source.model, VOCAB: vocab.encode()}
        return {SOURCE: self._source.model, TARGET: self._target.model, VOCAB: vocab.encode()}


def is_marian(path: Path) -> bool:
    """Return whether a folder holds the files of such a tokenizer."""
    return (path / SOURCE).exists() and (path / VOCAB).exists()


def read_marian(path: Path, languages: str | None = None) -> Marian:
    """Return the tokenizer of a folder's source.spm, target.spm and vocab.json.

    languages: of `LANGUAGES`, for a folder of M2M-100 with one sentencepiece.bpe.model instead.
    """
    sides = (SOURCE, TARGET) if languages is None else (ONE_MODEL, ONE_MODEL)
    raw = {
        name: files.read_artifact(path / name, "tokenizer file", folder.MAX_BYTES)
        for name in (*sides, VOCAB)
    }
    try:
        vocabulary = json.loads(raw[VOCAB], object_pairs_hook=files.once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / VOCAB} is no JSON: {error}; fetch it again") from error
    try:
        codes = [f"__{code}__" for code in LANGUAGES[languages].split()] if languages else []
        whole = _checked(vocabulary)
        whole = whole | {code: len(whole) + i for i, code in enumerate(codes)}
        marks = [*codes, "<s>"] if codes else []
        return Marian(packed(raw[sides[0]], raw[sides[1]], whole, marks))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def packed(source: bytes, target: bytes, vocab: Any, marks: Sequence[str] = ()) -> bytes:
    """Return the parts as one file; marks: pieces of the vocabulary that no text yields."""
    sides = [base64.b64encode(side).decode() for side in (source, target)]
    about = {"source": sides[0], "target": sides[1], "vocab": vocab}
    return json.dumps(about | ({"marks": list(marks)} if marks else {})).encode()


def _is_language(name: str, marks: Sequence[str]) -> bool:
    return name in marks and name.startswith("__")


def _checked(known: Any) -> dict[str, int]:
    if not isinstance(known, dict) or not all(type(i) is int for i in known.values()):
        raise CheckpointError(f"{VOCAB} does not map pieces to ids; fetch it again")
    if sorted(known.values()) != list(range(len(known))):
        raise CheckpointError(f"the ids of {VOCAB} are not 0 .. {len(known) - 1}, each once")
    if UNKNOWN not in known:
        raise CheckpointError(f"{VOCAB} has no {UNKNOWN}; fetch it again")
    return known

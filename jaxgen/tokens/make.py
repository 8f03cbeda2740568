"""Making tokenizers: by training, from a file, from a folder that one was saved to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.tokens import folder
from jaxgen.tokens.plain import Bytes, Chars, learn_characters
from jaxgen.tokens.protocol import Special, Tokenizer
from jaxgen.tokens.settings import TokenizerSettings


def train(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that `settings` describe; the same texts give the same tokenizer.

    Kinds bytes and file don't look at the texts. Raises ConfigError for a vocabulary that the
    texts don't support, DataError for texts of nothing, CheckpointError for a bad file.
    """
    if settings.kind == "file":
        assert settings.file is not None
        return load(settings.file, bos=settings.bos, eos=settings.eos, pad=settings.pad)
    if settings.kind == "bytes":
        return Bytes()
    if settings.kind == "chars":
        return learn_characters(texts)
    from jaxgen.tokens.pieces import learn_pieces

    return learn_pieces(settings, texts)


def load(
    path: str | PathLike,
    *,
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
) -> Tokenizer:
    """Return the tokenizer of a saved folder, a sentencepiece model or a tokenizer.json.

    bos, eos, pad: the pieces of a file that play these roles; without them a sentencepiece model
    has those it declares, a tokenizer.json has none. Raises CheckpointError for a missing or
    damaged file, ConfigError for a piece that it does not have or an extra that is not installed.
    """
    path, named = files.to_path(path), {"bos": bos, "eos": eos, "pad": pad}
    if path.is_dir():
        if any(named.values()):
            raise ConfigError(f"{path}: a saved tokenizer has its own bos, eos and pad; name none")
        return _saved(path)
    raw = files.read_artifact(path, "tokenizer file", folder.MAX_BYTES)
    kind = "hf" if path.suffix == ".json" or raw.lstrip()[:1] in (b"{", b"[") else "sentencepiece"
    with _at(path):
        tokenizer = _open(kind, raw, None)
    declared = {
        name: getattr(tokenizer.special, name) if piece is None else _find(tokenizer, name, piece)
        for name, piece in named.items()
    }
    special = Special(**declared)
    return tokenizer if special == tokenizer.special else _open(kind, raw, special)


def _saved(path: Path) -> Tokenizer:
    about, raw, special = folder.read_folder(path)
    with _at(path):
        tokenizer = _open(about["kind"], raw, special, about)
    if tokenizer.fingerprint != about["fingerprint"]:
        raise CheckpointError(f"{path} is damaged: the tokenizer is not the one that was saved")
    return tokenizer


def _open(
    kind: str, raw: bytes, special: Special | None, about: Mapping[str, Any] | None = None
) -> Tokenizer:
    if kind == "chars":
        return Chars(raw.decode())
    if kind == "bytes":
        return Bytes()
    if kind == "sentencepiece":
        from jaxgen.tokens.pieces import Pieces

        return Pieces(raw, special)
    if kind == "marian":
        from jaxgen.tokens.marian import Marian

        return Marian(raw, special)
    if kind == "hf":
        from jaxgen.tokens.huggingface import HuggingFace

        about = about or {}
        return HuggingFace(
            raw, special, roles=about.get("roles"), vocab_size=about.get("vocab_size")
        )
    raise CheckpointError(f"kind={kind!r} is of a newer jaxgen; upgrade")


class _at:  # noqa: N801  reads as a word
    """Puts the path before the message of a CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{self.path}: {error}") from error
        if isinstance(error, UnicodeDecodeError):
            raise CheckpointError(f"{self.path}: byte {error.start} is not UTF-8") from error


def _find(tokenizer, name: str, piece: str) -> int:
    vocabulary = tokenizer.vocabulary()
    if piece not in vocabulary:
        near = nearest(piece, vocabulary) if len(vocabulary) < 300_000 else ""
        raise ConfigError(f"tokenizer.{name}={piece!r} is no piece of the tokenizer file{near}")
    return vocabulary[piece]

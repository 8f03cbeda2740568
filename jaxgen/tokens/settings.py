"""How text becomes token ids: the knobs of the `tokenizer` section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import option

VOCAB_SIZE = 4096
SMALLEST = 261  # unk, bos, eos, pad, 256 bytes and one character
MAX_BYTES = 50_000_000
DEFAULTS = {"vocab_size": VOCAB_SIZE, "max_bytes": MAX_BYTES, "lowercase": False}  # if trained


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Kind and size of the tokenizer; raises ConfigError naming the field at fault."""

    kind: Literal["bpe", "unigram", "chars", "bytes", "file", "init"] = option(
        "bpe or unigram: trained on the corpus; chars, bytes: as they are; file: read one; "
        "init: that of init_from",
        "bpe",
    )
    vocab_size: int = option("pieces of a trained bpe or unigram tokenizer", VOCAB_SIZE)
    file: Path | None = option("a sentencepiece .model or a Hugging Face tokenizer.json", None)
    bos: str | None = option("kind=file: the piece that begins a document; null: as declared", None)
    eos: str | None = option("kind=file: the piece that ends a document; null: as declared", None)
    pad: str | None = option("kind=file: the piece that pads; null: as declared", None)
    max_bytes: int = option("a bpe or unigram tokenizer learns from this much text", MAX_BYTES)
    lowercase: bool = option("bpe, unigram: text is read, and so written, in small letters", False)
    dropout: float = option(
        "bpe: part of its merges that the training text goes without (Provilkov et al. 2020)", 0.0
    )
    draws: int = option("with dropout: times that the training text is cut, each in its own way", 1)

    def __post_init__(self) -> None:
        trained = self.kind in ("bpe", "unigram")
        if trained and self.vocab_size < SMALLEST:
            raise ConfigError(
                f"vocab_size={self.vocab_size} must be at least {SMALLEST}: 256 bytes, 4 special "
                f"pieces and one character; or take kind: bytes"
            )
        if self.vocab_size > 10_000_000:
            raise ConfigError(f"vocab_size={self.vocab_size} must be at most 10000000")
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes={self.max_bytes} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")
        if self.dropout and self.kind != "bpe":
            raise ConfigError(f"dropout={self.dropout} needs kind=bpe, but kind={self.kind}")
        if self.draws < 1 or (self.draws > 1 and not self.dropout):
            raise ConfigError(
                f"draws={self.draws} must be 1 or more, and 1 where nothing is drawn (dropout=0)"
            )
        for name, default in DEFAULTS.items():
            if not trained and getattr(self, name) != default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect with kind={self.kind}; remove it"
                )
        if self.kind == "file" and self.file is None:
            raise ConfigError("file=null but kind=file; name a .model or a tokenizer.json")
        for name in ("file", "bos", "eos", "pad"):
            if self.kind != "file" and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={str(getattr(self, name))!r} needs kind=file, but kind={self.kind}"
                )

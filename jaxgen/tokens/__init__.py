"""Tokenizers: text to ids and back, exactly; trained here, or read from a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxgen.tokens.detokenize import Detokenizer
    from jaxgen.tokens.make import load, train
    from jaxgen.tokens.protocol import Special, Tokenizer
    from jaxgen.tokens.settings import TokenizerSettings

_HOME = {
    "Detokenizer": "detokenize",
    "Special": "protocol",
    "Tokenizer": "protocol",
    "TokenizerSettings": "settings",
    "load": "make",
    "train": "make",
}

__all__ = ["Detokenizer", "Special", "Tokenizer", "TokenizerSettings", "load", "train"]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f"jaxgen.tokens.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jaxgen.tokens' has no attribute {name!r}")

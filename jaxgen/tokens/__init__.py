"""Tokenizers: text to ids and back, exactly; trained here, or read from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.tokens.detokenize import Detokenizer
    from jaxgen.tokens.make import load, train
    from jaxgen.tokens.protocol import Special, Tokenizer
    from jaxgen.tokens.settings import TokenizerSettings

__all__ = ["Detokenizer", "Special", "Tokenizer", "TokenizerSettings", "load", "train"]

__getattr__, __dir__ = lazy.attach(__name__)

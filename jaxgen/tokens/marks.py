"""Ids that stand for what is to be guessed, and ids by what they spell."""

from __future__ import annotations

import numpy as np

from jaxgen.tokens.protocol import Tokenizer

MASKS = ("<mask>", "[MASK]")
SENTINELS = 100  # as T5 has
SENTINEL = "<extra_id_{}>"
ENDS = (".", "!", "?", "\n")


def mask_of(tokenizer: Tokenizer) -> int:
    """Return the id of the mask: the tokenizer's own or, if it has none, the one after its last."""
    vocabulary = _vocabulary(tokenizer)
    return next((vocabulary[name] for name in MASKS if name in vocabulary), tokenizer.vocab_size)


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of T5's sentinels: the tokenizer's own, or those after its last."""
    vocabulary = _vocabulary(tokenizer)
    names = [SENTINEL.format(i) for i in range(SENTINELS)]
    own = tuple(vocabulary[name] for name in names if name in vocabulary)
    return own or tuple(range(tokenizer.vocab_size, tokenizer.vocab_size + SENTINELS))


def begins_word(tokenizer: Tokenizer) -> np.ndarray:
    """Return [V] bool: ids that a new word begins with.

    Of pieces marked as continuing ("##" of BERT) the others; else those that begin with a space.
    """
    vocabulary = _vocabulary(tokenizer)
    begins = np.zeros(tokenizer.vocab_size, bool)
    if any(name.startswith("##") for name in vocabulary):
        for name, token in vocabulary.items():
            begins[token] = not name.startswith("##")
        return begins
    return np.asarray([text[:1].isspace() for text in _texts(tokenizer)])


def ends_sentence(tokenizer: Tokenizer) -> np.ndarray:
    """Return [V] bool: ids whose text ends in a full stop, or a mark like it."""
    return np.asarray([text.rstrip(" ").endswith(ENDS) for text in _texts(tokenizer)])


def text_or_name(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of an id; the name of its piece for one that stands for no text."""
    text = tokenizer.decode([token])
    names = _vocabulary(tokenizer).items()
    return text or next((name for name, own in names if own == token), f"<{token}>")


def _texts(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    listed = getattr(tokenizer, "vocabulary", None)
    return listed() if listed else {}

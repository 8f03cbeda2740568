"""Tokenizers without a model: characters and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from os import PathLike

from jaxgen.errors import CheckpointError, DataError
from jaxgen.tokens import folder, protocol
from jaxgen.tokens.protocol import Special, Surface


class Chars:
    """One id per character of the training text, by code point; no special ids."""

    special = Special()

    def __init__(self, characters: str) -> None:
        """characters: strictly ascending. Raises CheckpointError if they are not, or are none."""
        if not characters or any(a >= b for a, b in pairwise(characters)):
            raise CheckpointError("a character tokenizer wants its characters, each once, in order")
        self.characters = characters
        self.vocab_size = len(characters)
        self._ids = {character: i for i, character in enumerate(characters)}
        self.surface = Surface(tuple(character.encode() for character in characters))
        self.byte_lengths = self.surface.lengths()
        self.fingerprint = protocol.fingerprint("chars", characters.encode(), self.special)

    def encode(self, text: str) -> list[int]:
        """Return the ids; DataError for a character that the training text did not have."""
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            at = text.index(error.args[0])
            raise DataError(
                f"character {at} of the text, {error.args[0]!r} (U+{ord(error.args[0]):04X}), "
                f"is not among the {self.vocab_size} that this tokenizer has; "
                f"remove it, or train with tokenizer.kind: bpe or bytes"
            ) from None

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""
        return self.surface.decode(ids)

    def save(self, path: str | PathLike) -> None:
        """Write a new folder with the characters."""
        folder.save_folder(path, "chars", ("characters.txt", self.characters.encode()), self)


class Bytes:
    """256 bytes, then bos, eos and pad."""

    special = Special(bos=256, eos=257, pad=258)
    vocab_size = 259
    fingerprint = protocol.fingerprint("bytes", b"", special)

    def __init__(self) -> None:
        self.surface = Surface((*(bytes([b]) for b in range(256)), b"", b"", b""))
        self.byte_lengths = self.surface.lengths()

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes; DataError for a lone surrogate."""
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise protocol.not_unicode(text, error) from None

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; what is no UTF-8 becomes U+FFFD."""
        return self.surface.decode(ids)

    def save(self, path: str | PathLike) -> None:
        """Write a new folder that says so."""
        folder.save_folder(path, "bytes", None, self)


def learn_characters(texts: Iterable[str]) -> Chars:
    """Return the tokenizer of all characters in `texts`; DataError if there are none."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    if not alphabet:
        raise DataError("the corpus has no character to make a vocabulary of")
    characters = "".join(sorted(alphabet))
    try:
        characters.encode()
    except UnicodeEncodeError as error:
        raise protocol.not_unicode(characters, error) from None
    return Chars(characters)

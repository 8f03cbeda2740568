"""Ids to text while they arrive, without ever splitting a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from jaxgen.tokens.protocol import Tokenizer, check_ids


class Detokenizer:
    """Incremental `decode`: the pieces, joined, are the text of all ids pushed.

    after: ids that came before (a prompt), whose text is not given again: then the pieces are
    what decode(after + pushed) says beyond the whole characters of decode(after). A character
    whose bytes are not all there is held back, so U+FFFD appears only for bytes that never become
    one. A tokenizer that rewrites neighbouring pieces (WordPiece) gives all its text at `flush`.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._surface = getattr(tokenizer, "surface", None)
        self._after, self._held = [int(token) for token in after], []
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = bool(self._surface and self._surface.drop_space)
        if self._surface:
            for token in self._after:
                self.push(token)

    def push(self, token: int) -> str:
        """Return the text that is certain with this id, often ""; DataError if out of range."""
        if not self._surface:
            self._held.append(int(token))
            return ""
        check_ids([token], len(self._surface.pieces))
        raw = self._surface.pieces[token]
        if self._drop_space and raw:
            self._drop_space = False
            raw = raw[1:] if raw.startswith(b" ") else raw
        return self._bytes.decode(raw)

    def flush(self) -> str:
        """Return what is held back, and begin anew."""
        if self._surface:
            rest = self._bytes.decode(b"", True)
            self._bytes.reset()
            self._drop_space = self._surface.drop_space
            return rest
        before = self.tokenizer.decode(self._after) if self._after else ""
        text = self.tokenizer.decode([*self._after, *self._held])
        self._after, self._held = [], []
        # A decoder may rewrite the end of what was before; then the new ids speak for themselves.
        return text[len(before) :] if text.startswith(before) else text

"""Streaming text that ends before a stop string and never shows part of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxgen.decoding.stop import Reason
from jaxgen.safety.stream import Filter
from jaxgen.tokens import Detokenizer, Tokenizer


class StopStringFilter:
    """Text in pieces, up to the first stop string.

    A possible beginning of a stop string is held back.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings, self.found = tuple(strings), False
        self._held = ""

    def push(self, piece: str) -> str:
        """Return the text that is safe to show; nothing once a stop string was found."""
        if self.found:
            return ""
        text = self._held + piece
        # The first to be complete ends the text, however it came in pieces; of those that end
        # together the longest.
        held = [(text.find(one) + len(one), -len(one)) for one in self.strings if one in text]
        self.found = bool(held)
        end = sum(min(held)) if held else _safe_length(text, self.strings)
        self._held = "" if self.found else text[end:]
        return text[:end]

    def flush(self) -> str:
        """Return the text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held


def _safe_length(text: str, strings: Sequence[str]) -> int:
    """The length of `text` without the longest end that begins a string."""
    longest = max((len(string) for string in strings), default=1) - 1
    for begin in range(max(0, len(text) - longest), len(text)):
        if any(string.startswith(text[begin:]) for string in strings):
            return begin
    return len(text)


class TextStream:
    """One request's text, from its new tokens; `reason` is set when it has ended.

    ends: ids that end it besides the tokenizer's eos; none of them is part of the text. filters:
    what it passes before it is shown, such as `moderation.filters`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Iterable[int],
        strings: Sequence[str],
        limit: int,
        ends: Iterable[int] = (),
        filters: Sequence[Filter] = (),
    ) -> None:
        self.num_generated, self.limit = 0, limit
        self.reason: Reason | None = None
        self._ends = {*ends, tokenizer.special.eos}
        self._words = Detokenizer(tokenizer, after=prompt)
        self._clip, self.filters = StopStringFilter(strings), tuple(filters)

    def push(self, tokens: Iterable[int]) -> str:
        """Return the text that is certain with these tokens, of which those past its end don't
        count; at its end that is all the rest.
        """
        text = ""
        for token in tokens:
            if self.reason is not None:
                break
            self.num_generated += 1
            if token in self._ends:
                return text + self.end(Reason.STOP)
            text += self._pass(self._clip.push(self._words.push(token)))
            if self._clip.found:
                text += self._end(Reason.STRING)
            elif self.is_filtered:
                self.reason = Reason.FILTER
            elif self.num_generated >= self.limit:
                text += self.end(Reason.LENGTH)
        return text

    def end(self, reason: Reason) -> str:
        """Return the rest of a text that ends here."""
        rest = self._clip.push(self._words.flush())
        reason = Reason.STRING if self._clip.found else reason
        return self._pass(rest + self._clip.flush()) + self._end(reason)

    @property
    def is_filtered(self) -> bool:
        """Return whether a filter has ended the text."""
        return any(one.ended_by is not None for one in self.filters)

    def _pass(self, piece: str) -> str:
        for one in self.filters:
            piece = one.push(piece)
        return piece

    def _end(self, reason: Reason) -> str:
        rest = ""
        for one in self.filters:
            rest = one.push(rest) + one.flush()
        self.reason = Reason.FILTER if self.is_filtered else reason
        return rest

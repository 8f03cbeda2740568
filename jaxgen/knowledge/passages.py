"""Documents cut into passages: whole sentences under one heading, with offsets into the text."""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxgen import arguments
from jaxgen.arguments import at_least

SIZE, OVERLAP = 800, 160  # characters of a passage at most, and of the one before it repeated
# A sentence ends at its mark and the blank after it, at a mark of Chinese or Japanese, or where a
# paragraph or an item of a list does.
ENDS = re.compile(
    r"[.!?…][\"'”’)\]]*\s+|[。！？]+[」』”]*\s*|\n[ \t]*\n\s*|\n(?=[ \t]*(?:[-*+•]|\d+[.)])[ \t])"
)
# "# Title" of Markdown, or a line that is underlined, as in reStructuredText and Setext.
HEADINGS = re.compile(
    r"^(?:#{1,6}[ \t]+\S.*|(?P<text>\S.*)\n(?P<rule>([=\-~^\"'*+#])\3{2,})[ \t]*)$", re.MULTILINE
)
BREAKS = re.compile(r"\s+")


class Passage(NamedTuple):
    """A piece text[start:end] of a document, and the heading text[heading[0]:heading[1]] over it.

    All are counted in characters. A passage under no heading, or that begins with it, has (0, 0).
    """

    start: int
    end: int
    heading: tuple[int, int] = (0, 0)


@arguments.checked(size=at_least(1))
def sentences(text: str, size: int = SIZE) -> list[tuple[int, int]]:
    """Return (start, end) of each sentence of a text, in order, without the blanks around it.

    Args:
        text: any text.
        size: characters of a sentence at most; a longer one is cut at its last blank before that.

    >>> [text[a:b] for text in ["One. Two three."] for a, b in sentences(text)]
    ['One.', 'Two three.']
    """
    marks = {match.end() for match in ENDS.finditer(text)}
    for match in HEADINGS.finditer(text):
        marks |= {match.start(), match.end()}
    spans, start = [], 0
    for end in sorted({*marks, len(text)}):
        first, last = _stripped(text, start, end)
        while last - first > size:
            blanks = [one.start() for one in BREAKS.finditer(text, first + size // 2, first + size)]
            cut = blanks[-1] if blanks else first + size
            spans.append(_stripped(text, first, cut))
            first, _ = _stripped(text, cut, last)
        if last > first:
            spans.append((first, last))
        start = end
    return spans


@arguments.checked(size=at_least(1), overlap=at_least(0))
def split(text: str, size: int = SIZE, overlap: int = OVERLAP) -> list[Passage]:
    """Return the passages of a text, in order.

    A passage ends where a heading begins, unless it holds headings alone; within a section it
    holds as many whole sentences as fit, and begins with the last sentences of the one before, as
    many as `overlap` has room for.

    Args:
        text: of a document.
        size: characters of a passage at most, 1 or more.
        overlap: characters that two neighbours share at most, 0 or more and below `size`.
    """
    titles = {match.start(): match for match in HEADINGS.finditer(text)}
    passages: list[Passage] = []
    heading, title_end, held = (0, 0), 0, list[tuple[int, int]]()

    def close() -> None:
        if held:
            over = (0, 0) if held[0][0] <= heading[0] else heading
            passages.append(Passage(held[0][0], held[-1][1], over))

    for first, last in sentences(text, size):
        title = titles.get(first)
        if title is not None:
            if held and (held[-1][1] > title_end or last - held[0][0] > size):
                close()
                held = []
            heading, title_end = title.span("text" if title["text"] else 0), title.end()
        elif held and last - held[0][0] > size:
            close()
            end = held[-1][1]
            held = [span for span in held if end - span[0] <= overlap and last - span[0] <= size]
        held.append((first, last))
    close()
    return passages


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end

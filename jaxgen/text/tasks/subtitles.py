"""Segments of a transcript as lines of text, SRT or WebVTT, one by one as they are heard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxgen.text.tasks.transcription import Segment

Format = Literal["text", "times", "srt", "vtt", "json"]
HEADS: dict[Format, str] = {"vtt": "WEBVTT\n\n"}


def clock(seconds: float, point: str) -> str:
    """Return a time as hours:minutes:seconds, milliseconds behind a point or a comma."""
    total = round(seconds * 1000)
    minutes, rest = divmod(total, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _span(segment: Segment, point: str) -> str:
    return f"{clock(segment.start, point)} --> {clock(segment.end, point)}"


# (segment, its number from 1) -> its lines; "-->" within a text would end it early.
LINES: dict[Format, Callable[[Segment, int], str]] = {
    "text": lambda one, _: f"{one.text.strip()}\n",
    "times": lambda one, _: f"[{_span(one, '.')}] {one.text.strip()}\n",
    "srt": lambda one, n: f"{n}\n{_span(one, ',')}\n{_plain(one.text)}\n\n",
    "vtt": lambda one, _: f"{_span(one, '.')}\n{_plain(one.text)}\n\n",
    "json": lambda one, _: "",  # a whole transcript is one object
}


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("-->", "->")

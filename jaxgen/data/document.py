"""One text of a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """A text, the file or module it is from, and what is to be made of it, if that is known.

    target: the other side of a pair, or the name of a class. place: of a record, where it stands.
    user: whose it is, where that is asked for.
    """

    text: str
    source: str
    target: str | None = None
    place: str = field(default="", compare=False)
    user: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, and the target if there is one."""
        return (self.text,) if self.target is None else (self.text, self.target)

"""Classes of texts: their names in the corpus, and their numbers as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxgen.data.parallel import Draw, whole_documents
from jaxgen.data.settings import DataSettings
from jaxgen.data.split import assigned
from jaxgen.errors import DataError, nearest


def labels_of(settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the classes in the training split, sorted; DataError for fewer than 2."""
    labels = {
        document.target or ""
        for split, document in assigned(settings, form="classes")
        if split == "train"
    }
    if len(labels) < 2:
        raise DataError(f"the training text has the classes {sorted(labels)}; two are needed")
    return tuple(sorted(labels))


@dataclass(frozen=True)
class Labelled:
    """A tokenizer for texts and labels in turn: of a label the only id is its place."""

    tokenizer: Any
    labels: tuple[str, ...]

    def encode_documents(self, texts: list[str], draw: Draw | None) -> list[list[int]]:
        """Return the ids of each document, special ids included."""
        encoded = whole_documents(self.tokenizer, texts[::2], draw)
        return [ids for row, label in zip(encoded, texts[1::2], strict=True)
                for ids in (row, [self._index(label)])]  # fmt: skip

    def _index(self, label: str) -> int:
        if label not in self.labels:
            raise DataError(
                f"label {label!r} is none of the classes {', '.join(self.labels[:8])}"
                f"{nearest(label, self.labels)}"
            )
        return self.labels.index(label)

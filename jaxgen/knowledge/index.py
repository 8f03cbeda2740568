"""An index of documents: passages, their words, and their vectors if an encoder is given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.data.settings import FIELD
from jaxgen.errors import ConfigError
from jaxgen.knowledge import bm25, folder, passages, vectors
from jaxgen.knowledge.bm25 import Postings
from jaxgen.knowledge.documents import Passages, passage, read_documents, under_heading
from jaxgen.knowledge.embedding import Progress, embed, embed_passages, is_encoder
from jaxgen.knowledge.vectors import Rows
from jaxgen.text.loaded_model import LoadedModel, open_model

Method = Literal["hybrid", "bm25", "dense"]
POOL, CONSTANT = 100, 60  # of reciprocal rank fusion: ranks it looks at, and its constant
COUNT = 5  # passages that answer a question, unless a caller says otherwise


class Hit(NamedTuple):
    """A passage that a search returns: text == document[start:end], counted in characters.

    document: name of a file, with "#n" after it for record n of several. heading: what stands over
    the passage, or "". score: of the method that found it.
    """

    document: str
    start: int
    end: int
    text: str
    heading: str
    score: float
    number: int

    @property
    def shown(self) -> str:
        """Return the text as it is indexed: under its heading."""
        return under_heading(self.text, self.heading)


class Built(NamedTuple):
    """What `build` has done: sizes of the index, and how many of its passages were embedded."""

    documents: int
    passages: int
    embedded: int


@dataclass(frozen=True)
class Index:
    """An index that is open for searching; `open_index` makes it."""

    home: Path
    stored: folder.Stored
    encoder: LoadedModel | None = None

    @property
    def size(self) -> int:
        """Return the number of passages."""
        return len(self.stored.arrays["spans"])

    @property
    def threshold(self) -> float | None:
        """Return the least confidence of a question that the documents answer; None: not known."""
        return self.stored.extra.get("threshold")

    @cached_property
    def postings(self) -> Postings:
        """Return the inverted index of words."""
        return Postings(*(self.stored.arrays[name] for name in Postings._fields))

    @cached_property
    def rows(self) -> Rows | None:
        """Return the vectors, on the device; None for an index without."""
        if "codes" not in self.stored.arrays:
            return None
        return vectors.rows_of(self.stored.arrays, self.stored.extra["longest"])

    def document(self, number: int) -> str:
        """Return the whole text of a document."""
        return self._joined("text", number)

    def name(self, number: int) -> str:
        """Return the name of a document."""
        return self._joined("name", number)

    def _joined(self, kind: str, number: int) -> str:
        arrays = self.stored.arrays
        return folder.part(arrays[f"{kind}s"], arrays[f"{kind}_ends"], number).decode()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return the number of each document by its name."""
        return {self.name(n): n for n in range(len(self.stored.arrays["name_ends"]))}

    def hit(self, number: int, score: float = 0.0) -> Hit:
        """Return a passage by its number."""
        row = self.stored.arrays["spans"][number]
        document, start, end = map(int, row[:3])
        text, heading = passage(self.stored.arrays["texts"], row)
        return Hit(self.name(document), start, end, text, heading, score, number)

    def search(
        self,
        question: str,
        count: int = COUNT,
        *,
        method: Method | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Return the passages that fit a question best, the best first.

        Args:
            question: any text, not blank.
            count: passages at most, 1 or more; only those with a word of the question, by "bm25".
            method: "bm25" by words, "dense" by vectors, "hybrid" by the reciprocal ranks of both
                (Cormack et al. 2009). None: hybrid where there are vectors, else bm25.
            exact: compare all vectors, in place of those in the lists nearest to the question.

        Raises:
            ConfigError: for an empty question, vectors that the index does not have, or `exact`
                where none are compared.
        """
        if not question.strip():
            raise ConfigError("the question is empty; ask something")
        if count < 1:
            raise ConfigError(f"count={count} must be at least 1")
        method = method or ("bm25" if self.rows is None else "hybrid")
        if method != "bm25" and self.rows is None:
            raise ConfigError(
                f"method={method} needs vectors, and {self.home} has none; make it with "
                f"--encoder, or search with method=bm25"
            )
        if exact and method == "bm25":
            raise ConfigError("exact has no effect by words alone, which have no vectors; drop it")
        if method == "hybrid":
            ranks: dict[int, float] = {}
            pool = max(count, POOL)
            for ranking in (self._by_words(question, pool), self._dense(question, pool, exact)):
                for place, (number, _) in enumerate(ranking, 1):
                    ranks[number] = ranks.get(number, 0.0) + 1 / (CONSTANT + place)
            best = sorted(ranks.items(), key=lambda pair: (-pair[1], pair[0]))[:count]
        elif method == "bm25":
            best = self._by_words(question, count)
        else:
            best = self._dense(question, count, exact)
        return [self.hit(number, score) for number, score in best]

    def confidence(self, question: str, hits: Sequence[Hit]) -> float:
        """Return how well the best of some hits fit a question, 0 to 1.

        The share of the question's words, by weight, that one of them holds; where there are
        vectors, the mean of it and the cosine of the nearest.
        """
        if not hits:
            return 0.0
        words = max(bm25.coverage(self.postings, question, hit.shown) for hit in hits)
        if self.rows is None:
            return words
        nearest = self._dense(question, 1, False)
        return (words + max(nearest[0][1], 0.0)) / 2

    def _by_words(self, question: str, count: int) -> list[tuple[int, float]]:
        scores = bm25.scores(self.postings, question, self.size)
        return [(number, float(scores[number])) for number in bm25.top(scores, count)]

    def _dense(self, question: str, count: int, exact: bool) -> list[tuple[int, float]]:
        assert self.rows is not None and self.encoder is not None
        query = embed(self.encoder, [question], "query")
        probes = None if exact else vectors.PROBES
        scores, ids = vectors.nearest(self.rows, query, count, probes=probes)
        pairs = zip(np.asarray(ids[0]).tolist(), np.asarray(scores[0]).tolist(), strict=True)
        return [(number, score) for number, score in pairs if score > -np.inf]


@arguments.checked(size=at_least(1), overlap=at_least(0))
def build(
    sources: Sequence[str | os.PathLike],
    home: str | os.PathLike,
    *,
    encoder: str | os.PathLike | None = None,
    size: int = passages.SIZE,
    overlap: int = passages.OVERLAP,
    field: str = FIELD,
    on_bad_record: Literal["stop", "skip"] = "stop",
    batch: int = 32,
    progress: Progress | None = None,
) -> Built:
    """Write an index of documents, in the place of the one that is there.

    A passage whose text the old index has embedded, by this encoder, is not embedded again.

    Args:
        sources: files of text, .jsonl, .json, .parquet, .gz of them, folders or globs.
        home: the folder to write.
        encoder: what makes vectors of passages, as `jaxgen.open` takes it; None: words alone.
        size: characters of a passage at most, 1 or more.
        overlap: characters that two neighbours share at most, 0 or more and below `size`.
        field: of the text in records.
        on_bad_record: "skip" leaves out malformed files and records.
        batch: passages to embed at once.
        progress: called with (passages embedded, passages to embed).

    Raises:
        DataError: for no text, or malformed text. ConfigError: for a folder that is no index.
    """
    if overlap >= size:
        raise ConfigError(f"overlap={overlap} must be less than size={size}")
    home = Path(home)
    folder.check(home)
    names, texts, table = read_documents(sources, size, overlap, field, on_bad_record)
    model = None if encoder is None else open_model(encoder)
    arrays: dict[str, np.ndarray] = {"spans": table}
    arrays["texts"], arrays["text_ends"] = folder.join(texts)
    arrays["names"], arrays["name_ends"] = folder.join(names)
    passage_texts = Passages(arrays["texts"], table)
    arrays |= bm25.build(passage_texts)._asdict()
    extra: dict[str, Any] = {"size": size, "overlap": overlap, "encoder": None}
    embedded = 0
    if model is not None:
        rows, facts, embedded = embed_passages(model, passage_texts, home, batch, progress)
        arrays |= rows
        extra |= {**facts, "encoder": _source(encoder)}
    folder.write(home, "passages", arrays, extra)
    return Built(len(names), len(table), embedded)


def open_index(
    home: str | os.PathLike,
    *,
    encoder: str | os.PathLike | LoadedModel | None = None,
    verify: Literal["full", "off"] = "full",
) -> Index:
    """Return an index, open for searching.

    Args:
        home: the folder that `build` has written.
        encoder: of its vectors, where that has moved; None: as it was given.
        verify: "full" compares every byte with its checksum, "off" sizes alone.

    Raises:
        CheckpointError: for what is no index, is damaged, or is of a newer jaxgen.
        ConfigError: for an encoder that is not the one that made its vectors.
    """
    home = Path(home)
    stored = folder.read(home, "passages", verify=verify)
    if stored.extra["encoder"] is None:
        if encoder is not None:
            raise ConfigError(f"{home} has no vectors, so encoder={encoder} has no effect; drop it")
        return Index(home, stored)
    if isinstance(encoder, LoadedModel):
        model = encoder
    else:
        model = open_model(stored.extra["encoder"] if encoder is None else encoder)
    if not is_encoder(model, stored.extra["probe"]):
        raise ConfigError(
            f"{home} is of another encoder: {stored.extra['encoder']}, as it was when the index "
            f"was made; give that one, or make the index again"
        )
    return Index(home, stored, model)


def _source(encoder: Any) -> str:
    return os.path.abspath(encoder) if os.path.exists(encoder) else str(encoder)

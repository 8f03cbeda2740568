"""An index of documents: passages, their words, and their vectors if an encoder is given."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.data.document import Document
from jaxgen.data.reading import documents
from jaxgen.data.settings import FIELD, DataSettings
from jaxgen.data.sources import RECORDS, kind_of, text_below
from jaxgen.data.streams import Tally
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.knowledge import bm25, folder, passages, vectors
from jaxgen.knowledge.bm25 import Postings
from jaxgen.knowledge.vectors import Rows
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.text.tasks import scoring

Method = Literal["hybrid", "bm25", "dense"]
# The difference of their vectors tells encoders apart: those of any text may have much in common.
PROBES = ("The quick brown fox jumps over the lazy dog.", "x = [1, 2, 3]")
SAME = 0.998  # cosine of it by one encoder, in another dtype perhaps
POOL, CONSTANT = 100, 60  # of reciprocal rank fusion: ranks it looks at, and its constant
COUNT = 5  # passages that answer a question, unless a caller says otherwise
CHUNK = 1024  # texts that are embedded between two reports of progress
Progress = Callable[[int, int], None]


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
        return f"{self.heading}\n{self.text}" if self.heading else self.text


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
        arrays = self.stored.arrays
        return folder.part(arrays["texts"], arrays["text_ends"], number).decode()

    def name(self, number: int) -> str:
        """Return the name of a document."""
        arrays = self.stored.arrays
        return folder.part(arrays["names"], arrays["name_ends"], number).decode()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return the number of each document by its name."""
        return {self.name(n): n for n in range(len(self.stored.arrays["name_ends"]))}

    def hit(self, number: int, score: float = 0.0) -> Hit:
        """Return a passage by its number."""
        row = self.stored.arrays["spans"][number]
        document, start, end, *spans = map(int, row)
        texts = self.stored.arrays["texts"]
        text, heading = (texts[a:b].tobytes().decode() for a, b in (spans[:2], spans[2:]))
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
            ConfigError: for an empty question, or vectors that the index does not have.
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
        query = _embed(self.encoder, [question], "query")
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
    home, model = Path(home), None
    folder.check(home)
    names, texts, table = _read(sources, size, overlap, field, on_bad_record)
    if encoder is not None:
        model = open_model(encoder)
    arrays: dict[str, np.ndarray] = {"spans": table}
    arrays["texts"], arrays["text_ends"] = folder.join(texts)
    arrays["names"], arrays["name_ends"] = folder.join(names)
    blob = arrays["texts"]
    postings = bm25.build(_shown(blob, row) for row in table)
    arrays |= postings._asdict()
    extra: dict[str, Any] = {"size": size, "overlap": overlap, "encoder": None}
    embedded = 0
    if model is not None:
        probe = _probe(model)
        digests = np.stack([_digest(_shown(blob, row)) for row in table])
        old = _reusable(home, probe)
        rows, embedded = _embed_all(model, blob, table, digests, old, batch, progress)
        arrays |= {"digests": digests, **vectors.arrays_of(rows)}
        extra |= {"encoder": _source(encoder), "probe": probe.tolist(), "longest": rows.longest}
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
    if not _is_same(_probe(model), stored.extra["probe"]):
        raise ConfigError(
            f"{home} is of another encoder: {stored.extra['encoder']}, as it was when the index "
            f"was made; give that one, or make the index again"
        )
    return Index(home, stored, model)


def _read(
    sources: Sequence[str | os.PathLike],
    size: int,
    overlap: int,
    field: str,
    on_bad_record: Literal["stop", "skip"],
) -> tuple[list[bytes], list[bytes], np.ndarray]:
    """Return (names and texts of the documents, table of their passages)."""
    words = [os.fspath(source) for source in sources]
    if not words:
        raise ConfigError("no documents; name files or folders of text")
    for word in words:
        if Path(word).is_dir() and not text_below(Path(word))[0]:
            raise DataError(f"{word} holds no text; name a folder with .txt, .md or .jsonl files")
        if not Path(word).exists() and not any(c in word for c in "*?["):
            raise DataError(f"{word} does not exist; correct the path of the documents")
    settings = DataSettings(files=tuple(words), field=field, on_bad_record=on_bad_record)
    tally = Tally()
    names, texts, table, begin = list[bytes](), list[bytes](), list[list[int]](), 0
    for name, text in _named(documents(settings, tally, files=words)):
        raw = text.encode()
        # Where all characters are of one byte, which is usual, nothing has to be counted.
        place = (lambda at: at) if len(raw) == len(text) else _byte_places(text)
        for start, end, heading in passages.split(text, size, overlap):
            spans = (start, end, *heading)
            table.append([len(names), start, end, *(begin + int(place(at)) for at in spans)])
        names.append(name.encode())
        texts.append(raw)
        begin += len(raw)
    if tally.skipped:
        said = ", ".join(f"{count} of {what}" for what, count in tally.skipped.items())
        warnings.warn(f"left out: {said}", stacklevel=3)
    if not table:
        raise DataError(f"{words[0]} holds no text that can be searched; give other documents")
    return names, texts, np.asarray(table, np.int64)


def _named(read: Iterator[Document]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of documents: those of a file of records are numbered from 1."""
    source, number = "", 0
    for document in read:
        number = number + 1 if document.source == source else 1
        source = document.source
        several = kind_of(Path(source)) in RECORDS
        yield f"{source}#{number}" if several else source, document.text


def _byte_places(text: str) -> Callable[[int], int]:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    places = np.concatenate([[0], np.cumsum(widths)])
    return places.__getitem__


def _shown(blob: np.ndarray, row: np.ndarray) -> str:
    text, heading = (blob[a:b].tobytes().decode() for a, b in (row[3:5], row[5:7]))
    return f"{heading}\n{text}" if heading else text


def _digest(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint8)


def _source(encoder: Any) -> str:
    return os.path.abspath(encoder) if os.path.exists(encoder) else str(encoder)


def _embed(model: LoadedModel, texts: Sequence[str], prompt: str, batch: int = 32) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* were cut to .* tokens")
        made = scoring.embed(model, texts, prompt_name=prompt, batch=batch, overflow="cut")
    return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)


def _probe(model: LoadedModel) -> np.ndarray:
    first, second = _embed(model, PROBES, "document")
    return (first - second) / max(float(np.linalg.norm(first - second)), 1e-12)


def _is_same(probe: np.ndarray, other: Sequence[float]) -> bool:
    return len(probe) == len(other) and float(np.dot(probe, np.asarray(other))) > SAME


def _reusable(home: Path, probe: np.ndarray) -> dict[bytes, tuple[np.ndarray, Any]]:
    """Return {digest of a passage: its vector} of the index that is there, by this encoder."""
    if not home.exists():
        return {}
    try:
        stored = folder.read(home, "passages")
    except CheckpointError:  # damaged, or none: it is made anew
        return {}
    if stored.extra["encoder"] is None or not _is_same(probe, stored.extra["probe"]):
        return {}
    arrays, place = stored.arrays, np.argsort(stored.arrays["ids"])
    return {
        digest.tobytes(): (arrays["codes"][place[i]], arrays["scales"][place[i]])
        for i, digest in enumerate(arrays["digests"])
    }


def _embed_all(
    model: LoadedModel,
    blob: np.ndarray,
    table: np.ndarray,
    digests: np.ndarray,
    old: dict[bytes, tuple[np.ndarray, Any]],
    batch: int,
    progress: Progress | None,
) -> tuple[Rows, int]:
    """Return (vectors of all passages, how many had to be embedded)."""
    keys = [digest.tobytes() for digest in digests]
    fresh = [i for i, key in enumerate(keys) if key not in old]
    width = len(next(iter(old.values()))[0]) if old else 0
    codes = np.zeros((len(table), width), np.int8)
    scales = np.zeros(len(table), np.float32)
    for start in range(0, len(fresh), CHUNK):
        part = fresh[start : start + CHUNK]
        embedded = _embed(model, [_shown(blob, table[i]) for i in part], "document", batch)
        if not codes.shape[1]:
            codes = np.zeros((len(table), embedded.shape[1]), np.int8)
        codes[part], scales[part] = vectors.quantize(embedded)
        if progress:
            progress(start + len(part), len(fresh))
    for i, key in enumerate(keys):
        if key in old:
            codes[i], scales[i] = old[key]
    return vectors.arrange(codes, scales), len(fresh)

"""Documents to the token shards of each split, in a folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxgen import arguments, files
from jaxgen.data.digests import RowDigest
from jaxgen.data.document import Document
from jaxgen.data.labels import Labelled
from jaxgen.data.parallel import Chunk, encoded
from jaxgen.data.preferences import EACH
from jaxgen.data.reading import refuse
from jaxgen.data.settings import DataSettings, Form
from jaxgen.data.shard import ShardWriter
from jaxgen.data.split import SPLITS
from jaxgen.data.streams import Bad, Tally
from jaxgen.errors import DataError

FORMAT = 3
ABOUT = "corpus.json"
CHUNK = 1 << 20  # characters tokenised at once

Progress = Callable[[int, int], None]


@runtime_checkable
class Encoder(Protocol):
    """What preparing needs of a tokenizer; one of `jaxgen.tokens` is it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def special(self) -> Any: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_many(self, texts: list[str]) -> list[list[int]]: ...


@arguments.checked
@dataclass(frozen=True)
class Recipe:
    """What decides the tokens of a text: how it is read, split and cut.

    settings: with a split that is hash or tail; dropout, draws: see `prepare`.
    """

    settings: DataSettings
    tokenizer: Encoder
    form: Form = "text"
    labels: tuple[str, ...] = ()
    dropout: float = 0.0
    draws: int = 1

    def key(self, source: Any) -> str:
        """Return 32 hexadecimal digits of all this and of what tells the text, as JSON."""
        settings = self.settings
        parts = [
            FORMAT,
            source,
            settings.field,
            settings.split,
            *settings.fractions,
            settings.on_bad_record,
            self.tokenizer.fingerprint,
            [self.form, settings.sides, list(self.labels)],
        ]
        parts += [(self.dropout, self.draws)] if self.dropout else []
        parts += [["user", settings.user]] if settings.user is not None else []
        parts += [astuple(settings.canaries)] if settings.canaries.number else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass
class Written:
    """What writing has come to: about the text, for corpus.json, and runs of names by split.

    sources, users: [name, documents of it in a row]s.
    """

    text: RowDigest = field(default_factory=RowDigest)
    tally: Tally = field(default_factory=Tally)
    notes: Counter[str] = field(default_factory=Counter)
    sources: dict[str, list[list]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    users: dict[str, list[list]] = field(default_factory=lambda: {name: [] for name in SPLITS})

    def write(self, draft: Path, recipe: Recipe) -> None:
        """Write what is beside the shards; corpus.json comes last."""
        for split in SPLITS:
            files.write_json(draft / f"{split}.sources.json", self.sources[split])
            if recipe.settings.user is not None:
                files.write_json(draft / f"{split}.users.json", self.users[split])
        about = {
            "format": FORMAT,
            "text": self.text.row(),
            "fingerprint": recipe.tokenizer.fingerprint,
            "skipped": dict(self.tally.skipped),
            "bad": [self.tally.bad, self.tally.first_bad],
            "notes": dict(self.notes),
        }
        files.write_json(draft / ABOUT, about)


def write_shards(
    draft: Path,
    recipe: Recipe,
    reads: Iterator[tuple[str, Document]],
    written: Written,
    total: int,
    progress: Progress | None,
) -> dict[str, int]:
    """Write the shards of (split, document)s, and return how many documents each split has.

    written: with the tally of the reading; the rest is filled in. total: bytes of text.
    """
    settings, tokenizer = recipe.settings, recipe.tokenizer
    writers = {
        split: ShardWriter(
            draft / f"{split}.tokens",
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.fingerprint,
        )
        for split in SPLITS
    }
    coded = Labelled(tokenizer, recipe.labels) if recipe.form == "classes" else tokenizer
    waiting = deque[list[Document]]()
    try:
        for chunk in encoded(_chunks(reads, recipe, written, waiting), coded, total):
            whole = waiting.popleft()
            for number, reason, line in chunk.refused:
                refuse(settings, written.tally, Bad(reason, f"{whole[number].place}: {line}"))
            sources = [one.source for one in whole]
            _note(written.sources[chunk.split], sources, whole, chunk.counts)
            if settings.user is not None:
                whose = [one.user or one.source for one in whole]
                _note(written.users[chunk.split], whose, whole, chunk.counts)
            written.notes.update(chunk.notes)
            writers[chunk.split].add(chunk.ids, chunk.lengths, chunk.text_bytes)
            if progress:
                progress(min(written.tally.read, total), total)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    if progress:
        progress(total, total)
    return {split: writer.documents for split, writer in writers.items()}


def _chunks(
    pairs: Iterator[tuple[str, Document]],
    recipe: Recipe,
    written: Written,
    yielded: deque[list[Document]],
) -> Iterator[Chunk]:
    """Yield (split, texts, how they are drawn) of about CHUNK characters, in order in each split.

    A chunk of the training split comes once a draw. Its documents are added to `yielded`.
    """
    waiting: dict[str, list[Document]] = {split: [] for split in SPLITS}
    sizes, seeds = Counter[str](), count()

    def chunks_of(split: str) -> Iterator[Chunk]:
        full, waiting[split], sizes[split] = waiting[split], [], 0
        texts = [text for document in full for text in document.texts]
        dropout = recipe.dropout if split == "train" else 0.0
        for _ in range((recipe.draws if dropout else 1) if texts else 0):
            yielded.append(full)
            yield split, texts, (dropout, next(seeds)) if dropout else None

    for split, document in pairs:
        for part in document.texts:
            raw = part.encode()
            written.text = written.text.add(f"{split} ".encode() + raw)
        waiting[split].append(document)
        sizes[split] += sum(map(len, document.texts))
        if sizes[split] >= CHUNK:
            yield from chunks_of(split)
    for split in SPLITS:
        yield from chunks_of(split)


def _note(runs: list[list], names: list[str], documents: list[Document], counts: list[int]) -> None:
    """Add to `runs` of [name, documents of it in a row]; counts: of each text."""
    numbers = iter(counts)
    for name, document in zip(names, documents, strict=True):
        size = sum(next(numbers) for _ in document.texts)
        if runs and runs[-1][0] == name:
            runs[-1][1] += size
        else:
            runs.append([name, size])


def check_splits(recipe: Recipe, documents: Mapping[str, int], tally: Tally) -> None:
    """Raise DataError for a split that lacks the text it should have."""
    settings = recipe.settings
    # Documents of a shard that a record is.
    sides = {"text": 1, **EACH}.get(recipe.form, 2)
    counts = {split: number // sides for split, number in documents.items()}
    total = sum(counts.values())
    if not total:
        why = ", ".join(f"{reason}: {n}" for reason, n in tally.skipped.items())
        why = "; ".join([f"skipped {why}", *tally.first_bad[:1]]) if why else ""
        raise DataError(f"the corpus holds no text{f' ({why})' if why else ''}")
    named = {"valid": settings.valid_files, "test": settings.test_files}
    for split, patterns in named.items():
        if patterns and not counts[split]:
            raise DataError(
                f"data.{split}_files={list(patterns)} hold no text; give some, or leave them out"
            )
    for split in ("train", "valid"):
        if not counts[split] and (split == "train" or settings.fractions[0]):
            what, fix = ("document", "give more text") if sides == 1 else ("record", "give more")
            if settings.split == "hash":
                cuts = "cuts inside documents" if sides == 1 else "counts records"
                fix = f"set data.split=tail, which {cuts}, or give more of them"
            raise DataError(
                f"the {settings.split} split of {total} {what}{'s' * (total != 1)} leaves the "
                f"{split} split without text; {fix}"
            )

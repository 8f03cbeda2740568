"""Text to token shards: once per text, tokenizer and split; later runs map the same files."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxgen import files
from jaxgen.data.digests import DigestCache
from jaxgen.data.document import Document
from jaxgen.data.labels import Labelled
from jaxgen.data.parallel import Chunk, encoded
from jaxgen.data.preferences import EACH
from jaxgen.data.reading import check_form, documents, refuse
from jaxgen.data.records import classes_sides, first_record
from jaxgen.data.settings import FIELD, DataSettings, Form
from jaxgen.data.shard import ShardWriter, TokenShard, open_shard
from jaxgen.data.sources import Sources, kind_of, split_sources, text_below
from jaxgen.data.split import SPLITS, assigned, split_kind
from jaxgen.data.streams import Bad, Tally
from jaxgen.errors import BusyError, DataError

FORMAT = 2
ABOUT = "corpus.json"
CHUNK = 1 << 20  # characters tokenised at once
ABANDONED = 3600.0  # seconds without a write after which an unfinished corpus has no writer

Progress = Callable[[int, int], None]
Cuts = tuple[float, int]  # dropout, draws


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


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared text: a shard a split.

    digest: sha256 (hex) of text and split, whatever the tokenizer; fingerprint: the tokenizer's;
    reused: whether the shards were there already; skipped: records left out, by reason; notes:
    what of the files a reader should know, a line each.
    """

    train: TokenShard
    valid: TokenShard
    test: TokenShard
    digest: str
    fingerprint: str
    folder: Path
    reused: bool
    skipped: dict[str, int]
    notes: tuple[str, ...] = ()


def prepare(
    settings: DataSettings,
    tokenizer: Encoder,
    cache: Path,
    *,
    form: Form = "text",
    labels: Sequence[str] = (),
    dropout: float = 0.0,
    draws: int = 1,
    progress: Progress | None = None,
) -> Corpus:
    """Return the corpus as shards in a folder of `cache`, written now unless it is there.

    form: of pairs, sources and targets take turns as documents; of classes, every other document
    is the place of the class in `labels`, as its only token.
    dropout: with it the training text is cut `draws` times, without some of a BPE model's merges.
    progress: called with (bytes read, bytes in all). The folder appears whole or not at all.
    Raises DataError for malformed text, a split without text or damaged shards, BusyError where
    the cache can't be written.
    """
    check_form(settings, form)
    split, settings = settings.split, replace(settings, split=split_kind(settings, form))
    digests = DigestCache(cache)
    before = _source(settings, form, digests)
    notes = before["notes"]
    if split == "auto" and settings.split == "tail":
        held = " and ".join(f"{100 * part:g} %" for part in settings.fractions if part)
        if held:
            notes += (
                f"few documents, so validation and test are the last {held} of the text "
                f"(data.split=tail)",
            )
    cuts = (dropout, draws if dropout else 1)
    folder = cache / _key(settings, tokenizer, before, form, labels, cuts)
    # In a bucket, what was killed halfway is no folder under another name.
    reused = (folder / ABOUT if files.in_bucket(folder) else folder).exists()
    if not reused:
        _sweep(cache)
        try:
            with files.new_folder(folder) as draft:
                _write(draft, settings, tokenizer, progress, form, labels, cuts)
                if _stamps(settings) != before["stamps"]:
                    raise DataError(
                        "the text changed while it was read; start again when it is whole"
                    )
        except BusyError:
            # Another process may have prepared the same text meanwhile: then its work is ours.
            if not (folder / ABOUT).exists():
                raise
            reused = True
    corpus = _open(folder, tokenizer, digests, reused=reused)
    digests.save()
    return replace(corpus, notes=(*notes, *corpus.notes))


def _sweep(cache: Path) -> None:
    """Remove what killed processes have left half written; others may be writing right now."""
    with suppress(OSError):
        for draft in cache.glob(f"{files.TEMPORARY}*"):
            latest = max(path.stat().st_mtime for path in (draft, *draft.rglob("*")))
            if time.time() - latest > ABANDONED:
                files.remove(draft)


def _source(settings: DataSettings, form: Form, known: DigestCache) -> dict[str, Any]:
    """Return the digests of the text, split by split, its files' stamps, and notes of them."""
    if settings.corpus:
        digest = hashlib.sha256()
        for document in documents(settings, form=form):
            for text in document.texts:
                raw = text.encode()
                digest.update(len(raw).to_bytes(8, "little") + raw)
        return {"digests": [digest.hexdigest()], "stamps": [], "notes": ()}
    sources, stamps = split_sources(settings), _stamps(settings)
    sums: dict[Path, str] = {}
    for path in sources.paths:
        with files.refusals(path):
            sums[path] = known.of(path)
    # Two types of file may hold the same bytes and mean different texts.
    digests = [
        [[(sums[path], kind_of(path)) for path in source] for source in split]
        for split in sources[:3]
    ]
    return {
        "digests": digests,
        "stamps": stamps,
        "notes": tuple(_notes(settings, form, sources, sums)),
    }


def _notes(
    settings: DataSettings, form: Form, sources: Sources, sums: dict[Path, str]
) -> Iterator[str]:
    """Yield what would otherwise be a surprise: text that is left out, or held out as well."""
    folders = [files.to_path(name).expanduser() for name in settings.files]
    left = [path for folder in folders if folder.is_dir() for path in text_below(folder)[1]]
    if left:
        yield f"left out as empty or no text: {listed(left)}"
    if form == "text" and settings.field == FIELD:
        yield from _labelled(sources)
    if sources.withheld:
        names = listed([source[0] for source in sources.withheld])
        yield f"{names}: in data.files, but left out of training as validation or test text"
    held = {sums[path]: path for source in [*sources.valid, *sources.test] for path in source}
    for path in (path for source in sources.train for path in source if sums[path] in held):
        yield f"warning: {path} is training text and holds the same bytes as {held[sums[path]]}"


def _labelled(sources: Sources) -> Iterator[str]:
    """Yield a note if the text has a label beside it, which a model of text never sees."""
    path = sources.train[0][0]
    record = first_record(path)
    sides = classes_sides(record)
    if sides is not None and sides[0] == FIELD and isinstance(record[sides[1]], str):
        yield (
            f"the records of {path} have labels, which are not read: `jaxgen init classes {path}` "
            f"writes a config that learns them"
        )


def listed(paths: Sequence[Path]) -> str:
    """Return the names of the first three of some files, and how many more there are."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(map(str, paths[:3]))}{more}"


def _stamps(settings: DataSettings) -> list[tuple[str, int, int]]:
    stamps = []
    for path in () if settings.corpus else split_sources(settings).paths:
        with files.refusals(path):
            now = path.stat()
        stamps.append((str(path), now.st_size, now.st_mtime_ns))
    return stamps


def _key(
    settings: DataSettings,
    tokenizer: Encoder,
    source: dict[str, Any],
    form: Form,
    labels: Sequence[str],
    cuts: Cuts,
) -> str:
    parts = [
        FORMAT,
        source["digests"],
        settings.field,
        settings.split,
        *settings.fractions,
        settings.on_bad_record,
        tokenizer.fingerprint,
        [form, settings.sides, list(labels)],
    ]
    parts += [cuts] if cuts[0] else []
    parts += [["user", settings.user]] if settings.user is not None else []
    parts += [astuple(settings.canaries)] if settings.canaries.number else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _write(
    draft: Path,
    settings: DataSettings,
    tokenizer: Encoder,
    progress: Progress | None,
    form: Form,
    labels: Sequence[str],
    cuts: Cuts,
) -> None:
    fingerprint, size = tokenizer.fingerprint, tokenizer.vocab_size
    writers = {
        split: ShardWriter(draft / f"{split}.tokens", vocab_size=size, tokenizer=fingerprint)
        for split in SPLITS
    }
    origins: dict[str, list[list]] = {split: [] for split in SPLITS}
    users: dict[str, list[list]] = {split: [] for split in SPLITS}
    text, tally, total = hashlib.sha256(), Tally(), _total(settings, form)
    coded = Labelled(tokenizer, tuple(labels)) if form == "classes" else tokenizer
    waiting, notes = deque[list[Document]](), Counter[str]()
    try:
        chunks = _chunks(assigned(settings, tally, form=form), text, waiting, cuts)
        for chunk in encoded(chunks, coded, total):
            whole = waiting.popleft()
            for number, reason, line in chunk.refused:
                refuse(settings, tally, Bad(reason, f"{whole[number].place}: {line}"))
            _note(origins[chunk.split], [one.source for one in whole], whole, chunk.counts)
            if settings.user is not None:
                whose = [one.user or one.source for one in whole]
                _note(users[chunk.split], whose, whole, chunk.counts)
            notes.update(chunk.notes)
            writers[chunk.split].add(chunk.ids, chunk.lengths, chunk.text_bytes)
            if progress:
                progress(min(tally.read, total), total)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    _check(settings, writers, tally.skipped, form)
    if progress:
        progress(total, total)
    for split in SPLITS:
        files.write_json(draft / f"{split}.sources.json", origins[split])
        if settings.user is not None:
            files.write_json(draft / f"{split}.users.json", users[split])
    about = {
        "format": FORMAT,
        "digest": text.hexdigest(),
        "fingerprint": fingerprint,
        "skipped": dict(tally.skipped),
        "bad": [tally.bad, tally.first_bad],
        "notes": dict(notes),
    }
    files.write_json(draft / ABOUT, about)


def _chunks(
    pairs: Iterator[tuple[str, Document]],
    text: Any,
    yielded: deque[list[Document]],
    cuts: Cuts,
) -> Iterator[Chunk]:
    """Yield (split, texts, how they are drawn) of about CHUNK characters, in order in each split.

    A chunk of the training split comes once a draw. Its documents are added to `yielded`.
    """
    waiting: dict[str, list[Document]] = {split: [] for split in SPLITS}
    sizes, seeds = Counter[str](), count()

    def chunks_of(split: str) -> Iterator[Chunk]:
        full, waiting[split], sizes[split] = waiting[split], [], 0
        texts = [text for document in full for text in document.texts]
        dropout, draws = cuts if split == "train" else (0.0, 1)
        for _ in range(draws if texts else 0):
            yielded.append(full)
            yield split, texts, (dropout, next(seeds)) if dropout else None

    for split, document in pairs:
        for part in document.texts:
            raw = part.encode()
            text.update(f"{split} {len(raw)} ".encode() + raw)
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


def _total(settings: DataSettings, form: Form) -> int:
    if settings.corpus:
        return sum(len(t.encode()) for d in documents(settings, form=form) for t in d.texts)
    return sum(size for _, size, _ in _stamps(settings))


def _check(
    settings: DataSettings, writers: dict[str, ShardWriter], skipped: Counter, form: Form
) -> None:
    # Documents of a shard that a record is.
    sides = {"text": 1, **EACH}.get(form, 2)
    counts = {split: (len(writer.offsets) - 1) // sides for split, writer in writers.items()}
    total = sum(counts.values())
    if not total:
        why = ", ".join(f"{reason}: {n}" for reason, n in skipped.items())
        raise DataError(f"the corpus holds no text{f' (skipped {why})' if why else ''}")
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


def _open(folder: Path, tokenizer: Encoder, digests: DigestCache, *, reused: bool) -> Corpus:
    fingerprint = tokenizer.fingerprint
    shards = {
        split: open_shard(folder / f"{split}.tokens", tokenizer=fingerprint, verified=digests)
        for split in SPLITS
    }
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        digest, skipped = str(about["digest"]), dict(about["skipped"])
        bad, first_bad = about.get("bad", (0, ()))
        said = dict(about.get("notes", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / ABOUT} is damaged; remove {folder} to write it anew") from error
    if reused:
        files.touch(folder / ABOUT)  # so that the least used can be told from the rest
    return Corpus(
        train=shards["train"],
        valid=shards["valid"],
        test=shards["test"],
        digest=digest,
        fingerprint=fingerprint,
        folder=folder,
        reused=reused,
        skipped=skipped,
        notes=(*_bad_notes(bad, first_bad), *(f"{count:,} {note}" for note, count in said.items())),
    )


def _bad_notes(count: int, first: Sequence[str]) -> Iterator[str]:
    if count:
        more = f"; and {count - len(first)} more" if count > len(first) else ""
        yield f"left out as malformed (data.on_bad_record=skip), {count}: {'; '.join(first)}{more}"

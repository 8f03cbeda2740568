"""Text to token shards: once per text, tokenizer and split; later runs map the same files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jaxgen import files
from jaxgen.data.canaries import canary_notes
from jaxgen.data.digests import DigestCache, RowDigest
from jaxgen.data.reading import check_form, documents
from jaxgen.data.records import classes_sides, first_record
from jaxgen.data.settings import FIELD, DataSettings, Form
from jaxgen.data.shard import TokenShard, open_shard
from jaxgen.data.sources import Sources, kind_of, split_sources, text_below
from jaxgen.data.split import SPLITS, assigned, split_kind
from jaxgen.data.writing import (
    ABOUT,
    Encoder,
    Progress,
    Recipe,
    Written,
    check_splits,
    write_shards,
)
from jaxgen.errors import BusyError, DataError

ABANDONED = 3600.0  # seconds without a write after which an unfinished corpus has no writer


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared text: a shard a split.

    digest: (hex) of text and split, whatever the tokenizer; fingerprint: the tokenizer's;
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
    recipe = recipe_of(settings, tokenizer, form, labels, dropout, draws)
    digests = DigestCache(cache)
    before = source_of(recipe, digests)
    notes = before.notes
    if settings.split == "auto" and recipe.settings.split == "tail":
        held = " and ".join(f"{100 * part:g} %" for part in settings.fractions if part)
        if held:
            notes += (
                f"few documents, so validation and test are the last {held} of the text "
                f"(data.split=tail)",
            )
    notes += tuple(canary_notes(settings.canaries))
    folder = cache / recipe.key(before.digests)

    def write(draft: Path) -> None:
        write_text(draft, recipe, split_paths(recipe.settings), before.stamps, progress=progress)

    reused = write_once(folder, write)
    corpus = open_corpus(folder, tokenizer, digests, reused=reused)
    digests.save()
    return replace(corpus, notes=(*notes, *corpus.notes))


def write_text(
    draft: Path,
    recipe: Recipe,
    paths: Sequence[Path],
    before: list[tuple[str, int, int]],
    *,
    only: Sources | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the shards of a text, or of `only` some of its files, and what is beside them.

    paths: of the files; before: their `stamps` when they were digested. Raises DataError if they
    have changed since, or if all the text leaves a split without any.
    """
    written = Written()
    reads = assigned(recipe.settings, written.tally, form=recipe.form, only=only)
    counts = write_shards(draft, recipe, reads, written, _total(recipe, before), progress)
    if only is None:
        check_splits(recipe, counts, written.tally)
    written.write(draft, recipe)
    if stamps(paths) != before:
        raise DataError("the text changed while it was read; start again when it is whole")


def recipe_of(
    settings: DataSettings,
    tokenizer: Encoder,
    form: Form,
    labels: Sequence[str],
    dropout: float,
    draws: int,
) -> Recipe:
    """Return the recipe of a corpus, with the split that `auto` means for its text."""
    check_form(settings, form)
    settings = replace(settings, split=split_kind(settings, form))
    return Recipe(settings, tokenizer, form, tuple(labels), dropout, draws if dropout else 1)


def write_once(folder: Path, write: Callable[[Path], None]) -> bool:
    """Make a folder of shards, whole or not at all, unless it is there; return whether it was."""
    # In a bucket, what was killed halfway is no folder under another name.
    if (folder / ABOUT if files.in_bucket(folder) else folder).exists():
        return True
    _sweep(folder.parent)
    try:
        with files.new_folder(folder) as draft:
            write(draft)
    except BusyError:
        # Another process may have prepared the same text meanwhile: then its work is ours.
        if not (folder / ABOUT).exists():
            raise
        return True
    return False


def _sweep(cache: Path) -> None:
    """Remove what killed processes have left half written; others may be writing right now."""
    with suppress(OSError):
        for draft in cache.glob(f"{files.TEMPORARY}*"):
            latest = max(path.stat().st_mtime for path in (draft, *draft.rglob("*")))
            if time.time() - latest > ABANDONED:
                files.remove(draft)


class Source(NamedTuple):
    """The digests of a text, split by split, its files' stamps, and notes of them."""

    digests: list
    stamps: list[tuple[str, int, int]]
    notes: tuple[str, ...]


def source_of(recipe: Recipe, known: DigestCache) -> Source:
    """Return what tells a text from others; what is known of its files is not read again."""
    settings, form = recipe.settings, recipe.form
    if settings.corpus:
        digest = hashlib.sha256()
        for document in documents(settings, form=form):
            for text in document.texts:
                raw = text.encode()
                digest.update(len(raw).to_bytes(8, "little") + raw)
        return Source([digest.hexdigest()], [], ())
    sources = split_sources(settings)
    before = stamps(sources.paths)
    sums: dict[Path, str] = {}
    for path in sources.paths:
        with files.refusals(path):
            sums[path] = known.of(path)
    # Two types of file may hold the same bytes and mean different texts.
    digests = [
        [[(sums[path], kind_of(path)) for path in source] for source in split]
        for split in sources[:3]
    ]
    return Source(digests, before, tuple(_notes(settings, form, sources, sums)))


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


def split_paths(settings: DataSettings) -> list[Path]:
    """Return the files of a corpus, each once; none of text that ships with Python."""
    return [] if settings.corpus else split_sources(settings).paths


def stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return (path, size, time of change) of files."""
    shown = []
    for path in paths:
        with files.refusals(path):
            now = path.stat()
        shown.append((str(path), now.st_size, now.st_mtime_ns))
    return shown


def _total(recipe: Recipe, before: list[tuple[str, int, int]]) -> int:
    """Return the bytes of a text."""
    if recipe.settings.corpus:
        read = documents(recipe.settings, form=recipe.form)
        return sum(len(text.encode()) for one in read for text in one.texts)
    return sum(size for _, size, _ in before)


def open_corpus(folder: Path, tokenizer: Encoder, digests: DigestCache, *, reused: bool) -> Corpus:
    """Return the corpus in a folder; DataError if it is damaged or of another tokenizer."""
    fingerprint = tokenizer.fingerprint
    shards = {
        split: open_shard(folder / f"{split}.tokens", tokenizer=fingerprint, verified=digests)
        for split in SPLITS
    }
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        digest, skipped = RowDigest.of_row(about["text"]).hex(), dict(about["skipped"])
        bad, first_bad = about.get("bad", (0, ()))
        said = dict(about.get("notes", {}))
    except (OSError, ValueError, LookupError, TypeError) as error:
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

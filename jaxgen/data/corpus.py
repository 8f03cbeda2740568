"""Text to token shards: once per text, tokenizer and split; later runs map the same files."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxgen import files
from jaxgen.data.parallel import encoded
from jaxgen.data.reading import Document, documents, paths
from jaxgen.data.settings import DataSettings
from jaxgen.data.shard import ShardWriter, TokenShard, open_shard
from jaxgen.data.split import SPLITS, assigned
from jaxgen.data.streams import Tally
from jaxgen.errors import BusyError, DataError

FORMAT = 1
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


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared text: a shard a split.

    digest: sha256 (hex) of text and split, whatever the tokenizer; fingerprint: the tokenizer's;
    reused: whether the shards were there already; skipped: records left out, by reason.
    """

    train: TokenShard
    valid: TokenShard
    test: TokenShard
    digest: str
    fingerprint: str
    folder: Path
    reused: bool
    skipped: dict[str, int]


def prepare(
    settings: DataSettings,
    tokenizer: Encoder,
    cache: Path,
    *,
    progress: Progress | None = None,
) -> Corpus:
    """Return the corpus as shards in a folder of `cache`, written now unless it is there.

    progress: called with (bytes read, bytes in all). The folder appears whole or not at all.
    Raises DataError for malformed text, a split without text or damaged shards, BusyError where
    the cache can't be written.
    """
    before = _source(settings)
    folder = cache / _key(settings, tokenizer, before)
    if folder.exists():
        return _open(folder, tokenizer, reused=True)
    try:
        with files.new_folder(folder) as draft:
            _write(draft, settings, tokenizer, progress)
            if _stamps(settings) != before["stamps"]:
                raise DataError("the text changed while it was read; start again when it is whole")
    except BusyError:
        # Another process may have prepared the same text meanwhile: then its work is ours.
        if not (folder / ABOUT).exists():
            raise
        return _open(folder, tokenizer, reused=True)
    return _open(folder, tokenizer, reused=False)


def _source(settings: DataSettings) -> dict[str, Any]:
    if settings.corpus:
        whole = hashlib.sha256()
        size = 0
        for document in documents(settings):
            raw = document.text.encode()
            whole.update(len(raw).to_bytes(8, "little") + raw)
            size += len(raw)
        return {"digests": [whole.hexdigest()], "stamps": []}
    stamps = _stamps(settings)
    found = []
    for path in paths(settings):
        with files.refusals(path):
            found.append(files.digest(path))
    return {"digests": found, "stamps": stamps}


def _stamps(settings: DataSettings) -> list[tuple[str, int, int]]:
    found = []
    for path in () if settings.corpus else paths(settings):
        with files.refusals(path):
            now = path.stat()
        found.append((str(path), now.st_size, now.st_mtime_ns))
    return found


def _key(settings: DataSettings, tokenizer: Encoder, source: dict[str, Any]) -> str:
    parts = [
        FORMAT,
        source["digests"],
        # Two types of file may hold the same bytes and mean different texts.
        [Path(name).suffixes[-2:] for name, *_ in source["stamps"]],
        settings.field,
        settings.split,
        settings.valid_fraction,
        settings.test_fraction,
        settings.on_bad_record,
        tokenizer.fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _write(
    draft: Path, settings: DataSettings, tokenizer: Encoder, progress: Progress | None
) -> None:
    fingerprint, size = tokenizer.fingerprint, tokenizer.vocab_size
    writers = {
        split: ShardWriter(draft / f"{split}.tokens", vocab_size=size, tokenizer=fingerprint)
        for split in SPLITS
    }
    sources: dict[str, list[list]] = {split: [] for split in SPLITS}
    text, tally, total = hashlib.sha256(), Tally(), _total(settings)
    try:
        chunks = _chunks(assigned(settings, tally), text, sources)
        for split, ids, lengths, size in encoded(chunks, tokenizer, total):
            writers[split].add(ids, lengths, size)
            if progress:
                progress(min(tally.read, total), total)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    _check(settings, writers, tally.skipped)
    if progress:
        progress(total, total)
    for split in SPLITS:
        files.write_json(draft / f"{split}.sources.json", sources[split])
    about = {
        "format": FORMAT,
        "digest": text.hexdigest(),
        "fingerprint": fingerprint,
        "skipped": dict(tally.skipped),
    }
    files.write_json(draft / ABOUT, about)


def _chunks(
    pairs: Iterator[tuple[str, Document]], text: Any, sources: dict[str, list[list]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield (split, texts) of about CHUNK characters, in order within each split."""
    waiting: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes = Counter[str]()
    for split, document in pairs:
        raw = document.text.encode()
        text.update(f"{split} {len(raw)} ".encode() + raw)
        runs = sources[split]
        if runs and runs[-1][0] == document.source:
            runs[-1][1] += 1
        else:
            runs.append([document.source, 1])
        waiting[split].append(document.text)
        sizes[split] += len(document.text)
        if sizes[split] >= CHUNK:
            yield split, waiting[split]
            waiting[split], sizes[split] = [], 0
    for split in SPLITS:
        if waiting[split]:
            yield split, waiting[split]


def _total(settings: DataSettings) -> int:
    if settings.corpus:
        return sum(len(document.text.encode()) for document in documents(settings))
    return sum(size for _, size, _ in _stamps(settings))


def _check(settings: DataSettings, writers: dict[str, ShardWriter], skipped: Counter) -> None:
    counts = {split: len(writer.offsets) - 1 for split, writer in writers.items()}
    whole = sum(counts.values())
    if not whole:
        why = ", ".join(f"{reason}: {n}" for reason, n in skipped.items())
        raise DataError(f"the corpus holds no text{f' (skipped {why})' if why else ''}")
    for split in ("train", "valid"):
        if not counts[split] and (split == "train" or settings.valid_fraction):
            fix = "give more text"
            if settings.split == "hash":
                fix = "set data.split=tail, which cuts inside documents, or give more of them"
            raise DataError(
                f"the {settings.split} split of {whole} documents leaves the {split} split "
                f"without text; {fix}"
            )


def _open(folder: Path, tokenizer: Encoder, *, reused: bool) -> Corpus:
    fingerprint = tokenizer.fingerprint
    shards = {
        split: open_shard(folder / f"{split}.tokens", tokenizer=fingerprint) for split in SPLITS
    }
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        digest, skipped = str(about["digest"]), dict(about["skipped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / ABOUT} is damaged; remove {folder} to write it anew") from error
    if reused:
        with suppress(OSError):  # so that the least used can be told from the rest
            os.utime(folder / ABOUT)
    return Corpus(
        **shards,
        digest=digest,
        fingerprint=fingerprint,
        folder=folder,
        reused=reused,
        skipped=skipped,
    )

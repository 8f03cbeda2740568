"""A corpus prepared in parts, by any machines in any order, and joined without being copied."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgen import arguments, files
from jaxgen.data.corpus import (
    Corpus,
    open_corpus,
    recipe_of,
    source_of,
    split_paths,
    stamps,
    write_once,
    write_text,
)
from jaxgen.data.digests import DigestCache, RowDigest, stamp_of
from jaxgen.data.settings import DataSettings, Form
from jaxgen.data.shard import open_shard, write_joined
from jaxgen.data.sources import Sources, split_sources
from jaxgen.data.split import SPLITS
from jaxgen.data.streams import SHOWN, Tally
from jaxgen.data.writing import ABOUT, Encoder, Progress, Recipe, Written, check_splits
from jaxgen.errors import ConfigError, DataError

FOLDER = "parts-"  # then the key of what the parts are of


@arguments.checked
@dataclass(frozen=True)
class Part:
    """Which part of a corpus, from 0 up, of how many; ConfigError for one that isn't there."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if self.of < 1 or not 0 <= self.number < self.of:
            raise ConfigError(
                f"part {self.number} of {self.of} isn't there; parts are counted from 0, as in "
                f"--part 0 --of 8"
            )


def prepare_part(
    settings: DataSettings,
    tokenizer: Encoder,
    cache: Path,
    part: Part,
    *,
    form: Form = "text",
    labels: Sequence[str] = (),
    dropout: float = 0.0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """Prepare the files that are one part's, unless that is done.

    Parts are whole files in a row, of about as many bytes; a part may have none. Returns what its
    record says, and whether it was there. Raises ConfigError for settings under which the parts
    would depend on each other.
    """
    recipe = _recipe(settings, tokenizer, form, labels, dropout)
    home, own = _home(recipe, cache, part.of), _of_parts(recipe.settings, part.of)[part.number]
    folder, path = home / f"{part.number:05d}", home / f"{part.number:05d}.json"
    digests, before = DigestCache(cache), stamps(own.paths)
    if (record := _read_record(path, digests)) is not None:
        there = all(_shard(folder, split).exists() for split in SPLITS)
        if there and _is_of(record, own, digests):
            return record, True
        files.remove(folder)
        files.remove(path)
    text_digests = {str(name): _digest(name, digests) for name in own.paths}
    digests.save()

    def write(draft: Path) -> None:
        write_text(draft, recipe, own.paths, before, only=own, progress=progress)

    # A folder without its record is whole: its writer was killed before it could say so.
    write_once(folder, write)
    shards = {split: open_shard(_shard(folder, split)) for split in SPLITS}
    record = {
        "files": {str(n): [digests.stamp(n), text_digests[str(n)]] for n in own.paths},
        "tokens": {split: len(shard.tokens) for split, shard in shards.items()},
        "documents": {split: shard.documents for split, shard in shards.items()},
        "shards": {split: [stamp_of(s.path), s.checksum] for split, s in shards.items()},
    }
    files.write_json(path, record)
    return record, False


def join_parts(
    settings: DataSettings,
    tokenizer: Encoder,
    cache: Path,
    of: int,
    *,
    form: Form = "text",
    labels: Sequence[str] = (),
    dropout: float = 0.0,
) -> Corpus:
    """Return the corpus that `of` parts make up, as `prepare` would: with its key and digests.

    The parts stay where they are. Of what their writers have digested, nothing is read again that
    hasn't been touched since. Raises DataError, naming them, for parts that are missing or of
    another text.
    """
    recipe = _recipe(settings, tokenizer, form, labels, dropout)
    Part(0, of)  # refuses what is no number of parts
    home, digests = _home(recipe, cache, of), DigestCache(cache)
    wrong = []
    for number, own in enumerate(_of_parts(recipe.settings, of)):
        record = _read_record(home / f"{number:05d}.json", digests)
        if record is None or not _is_of(record, own, digests):
            wrong.append(number)
            continue
        for split, (stamp, checksum) in record["shards"].items():
            digests.remember(_shard(home / f"{number:05d}", split), tuple(stamp), checksum)
    if wrong:
        raise DataError(
            f"{_listed(wrong)} of {of} {'is' if len(wrong) == 1 else 'are'} missing, or of text "
            f"that has changed; make {'it' if len(wrong) == 1 else 'them'} with --part "
            f"{wrong[0]} --of {of}"
        )
    source = source_of(recipe, digests)
    folder = cache / recipe.key(source.digests)
    reused = write_once(folder, lambda draft: _write_joined(draft, recipe, home, of))
    corpus = open_corpus(folder, tokenizer, digests, reused=reused)
    digests.save()
    return replace(corpus, notes=(*source.notes, *corpus.notes))


def _write_joined(draft: Path, recipe: Recipe, home: Path, of: int) -> None:
    folders = [home / f"{number:05d}" for number in range(of)]
    written = Written()
    for folder in folders:
        about = json.loads((folder / ABOUT).read_bytes())
        written.text = written.text.join(RowDigest.of_row(about["text"]))
        written.notes.update(about["notes"])
        bad, first = about["bad"]
        written.tally = _add(written.tally, Tally(0, Counter(about["skipped"]), bad, first))
        for split in SPLITS:
            _extend(written.sources[split], folder / f"{split}.sources.json")
            if recipe.settings.user is not None:
                _extend(written.users[split], folder / f"{split}.users.json")
    counts = {}
    for split in SPLITS:
        parts = [open_shard(_shard(folder, split), verify=False) for folder in folders]
        counts[split] = sum(part.documents for part in parts)
        write_joined(
            draft / f"{split}.tokens",
            [part for part in parts if part.documents],
            above=home.parent,
            vocab_size=recipe.tokenizer.vocab_size,
            tokenizer=recipe.tokenizer.fingerprint,
        )
    check_splits(recipe, counts, written.tally)
    written.write(draft, recipe)


def _recipe(
    settings: DataSettings, tokenizer: Encoder, form: Form, labels: Sequence[str], dropout: float
) -> Recipe:
    refusals = {
        f"data.corpus={settings.corpus} is one text": settings.corpus is not None,
        f"data.canaries.number={settings.canaries.number} plants them once": (
            settings.canaries.number > 0
        ),
        f"tokenizer.dropout={dropout:g} numbers its draws through all of the text": dropout > 0,
    }
    for why, wrong in refusals.items():
        if wrong:
            raise ConfigError(f"{why}, so it has no parts; leave out --part, --of and --join")
    recipe = recipe_of(settings, tokenizer, form, labels, 0.0, 1)
    if recipe.settings.split == "tail":
        raise ConfigError(
            f"data.split={settings.split} cuts all of the text at one place, which no part knows; "
            f"set data.split=hash"
        )
    return recipe


def _home(recipe: Recipe, cache: Path, of: int) -> Path:
    """Return the folder of the parts: of these files, by name and size, and of this recipe."""
    every = [[name, size] for name, size, _ in stamps(split_paths(recipe.settings))]
    return cache / f"{FOLDER}{recipe.key([every, of])}"


def _of_parts(settings: DataSettings, of: int) -> list[Sources]:
    """Return the files of each part; one is of the part in which its middle lies."""
    every = split_sources(settings)
    rows = [
        (split, source, sum(size for _, size, _ in stamps(source)))
        for split in SPLITS
        for source in getattr(every, split)
    ]
    total, before = max(sum(size for *_, size in rows), 1), 0
    parts = [Sources([], [], [], []) for _ in range(of)]
    for split, source, size in rows:
        number = min((2 * before + size) * of // (2 * total), of - 1)
        getattr(parts[number], split).append(source)
        before += size
    return parts


def _shard(folder: Path, split: str) -> Path:
    return folder / f"{split}.tokens"


def _digest(path: Path, known: DigestCache) -> str:
    with files.refusals(path):
        return known.of(path)


def _read_record(path: Path, known: DigestCache) -> dict[str, Any] | None:
    """Return the record of a part, whose digests of text become known; None if there is none."""
    try:
        record = json.loads(path.read_bytes())
        if set(record) != {"files", "tokens", "documents", "shards"}:
            return None
        digests = [
            (name, tuple(stamp), digest)
            for name, (stamp, digest) in record["files"].items()
            if stamp is not None
        ]
    except (OSError, ValueError, TypeError):
        return None
    for name, stamp, digest in digests:
        with suppress(OSError):  # of a file that has gone
            known.remember(files.to_path(name), stamp, digest)
    return record


def _is_of(record: dict[str, Any], own: Sources, known: DigestCache) -> bool:
    """Return whether a record is of what the files of a part now hold."""
    said = {name: digest for name, (_, digest) in record["files"].items()}
    return said == {str(path): _digest(path, known) for path in own.paths}


def _add(tally: Tally, other: Tally) -> Tally:
    first = [*tally.first_bad, *other.first_bad]
    skipped = tally.skipped + other.skipped
    return Tally(0, skipped, tally.bad + other.bad, first[:SHOWN])


def _extend(runs: list[list], path: Path) -> None:
    more = json.loads(path.read_bytes())
    if runs and more and runs[-1][0] == more[0][0]:
        runs[-1][1] += more.pop(0)[1]
    runs += more


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    kind = "part" if len(numbers) == 1 else "parts"
    return f"{kind} {', '.join(map(str, numbers[:5]))}{more}"

"""What a run reads: its tokenizer and its token shards."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import data, tokens
from jaxgen.data.objectives.settings import CHATS
from jaxgen.data.preferences import EACH
from jaxgen.data.settings import WHOLE
from jaxgen.errors import BusyError, ConfigError
from jaxgen.files import human
from jaxgen.run import conversations
from jaxgen.run.folder import ENVIRONMENT
from jaxgen.run.objective import rows_needed
from jaxgen.run.progress import bar
from jaxgen.run.settings import Settings, resolve
from jaxgen.tokens import Tokenizer

TRAINED = ("bpe", "unigram")


def make_tokenizer(settings: Settings) -> Tokenizer:
    """Return the tokenizer of the settings, trained on the corpus where that is its kind.

    Trained pieces see the training split only; characters are listed from all of the corpus,
    since a validation text must be spellable.
    """
    kind, form = settings.tokenizer.kind, settings.objective.form
    if kind == "init":
        from jaxgen.run import initial

        assert settings.init_from is not None
        return initial.tokenizer_of(settings.init_from)
    if kind in ("bytes", "file"):
        return tokens.train(settings.tokenizer, ())
    if kind == "chars":
        return tokens.train(
            settings.tokenizer,
            (t for _, d in data.assigned(settings.data, form=form) for t in d.texts),
        )
    with bar(f"training a {kind} tokenizer of {settings.tokenizer.vocab_size} pieces"):
        return tokens.train(settings.tokenizer, data.training_texts(settings.data, form=form))


def sized(settings: Settings) -> Settings:
    """Return the settings with a vocabulary, for a plan: no tokenizer is trained.

    Pieces to be trained are as many as the settings say, and the few ids that an objective may add
    are left out; characters are listed from the text, which must be there.
    """
    if settings.model.vocab_size is not None:
        return settings
    size = settings.tokenizer.vocab_size
    if settings.tokenizer.kind not in TRAINED:
        size = rows_needed(settings.objective, make_tokenizer(settings))
    return replace(settings, model=settings.model.replace(vocab_size=size))


def prepare(
    settings: Settings,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    folder: Path | None = None,
    silent: bool = False,
    joined: int | None = None,
) -> data.Corpus:
    """Return the corpus as token shards in the cache, written now unless they are there.

    folder: of the run, whose chat template is taken if it has one. joined: it is made of so many
    parts, which are there.
    """
    encoder, options = _encoding(settings, tokenizer, folder)
    if joined is not None:
        corpus = data.join_parts(settings.data, encoder, cache / "data", joined, **options)
    else:
        with bar("writing token shards", silent=silent) as progress:
            draws = settings.tokenizer.draws
            corpus = data.prepare(
                settings.data, encoder, cache / "data", draws=draws, progress=progress, **options
            )
            progress.close("reused token shards" if corpus.reused else "wrote token shards")
    for note in () if silent else corpus.notes:
        print(note, file=sys.stderr, flush=True)
    return corpus


def _encoding(
    settings: Settings, tokenizer: Tokenizer, folder: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Return what encodes the text of a run, and how it is read."""
    encoder: Any = tokenizer
    if settings.objective.name in CHATS:
        encoder = conversations.encoder_of(settings, tokenizer, folder)
    return encoder, {
        "form": settings.objective.form,
        "labels": settings.objective.labels,
        "dropout": settings.tokenizer.dropout,
    }


def changed_text(folder: Path, corpus: data.Corpus) -> str | None:
    """Return a sentence if a corpus is not what the run in `folder` was begun with, else None.

    Where its files lie and what they are called does not count: only the text, and its split.
    """
    try:
        begun = json.loads((folder / ENVIRONMENT).read_bytes())["digests"]["text"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a run without a record; its checkpoints tell the text as well
    if begun == corpus.digest:
        return None
    return (
        f"the text is not what {folder} was begun with (digest {begun[:12]}, now "
        f"{corpus.digest[:12]}): put it back, or say where it is with data.files=[...]"
    )


def tokenize(
    settings: Settings, *, cache: Path, joined: int | None = None, tokenizer_to: Path | None = None
) -> list[tuple[str, str]]:
    """Return facts of the corpus, as (name, value) rows, after preparing it.

    joined: of so many parts; tokenizer_to: a new folder for the tokenizer.
    """
    if tokenizer_to is not None and tokenizer_to.exists():
        raise BusyError(f"{tokenizer_to} is there already; give --tokenizer-to another name")
    settings, tokenizer = _with_tokenizer(settings, parted=joined is not None)
    corpus = prepare(settings, tokenizer, cache, joined=joined)
    rows = [
        ("tokenizer", f"{settings.tokenizer.kind}, {tokenizer.vocab_size} ids"),
        ("shards", f"{corpus.folder} ({'reused' if corpus.reused else 'written'})"),
        ("digest", corpus.digest),
    ]
    if tokenizer_to is not None:
        tokenizer.save(tokenizer_to)
        rows[:1] = [("tokenizer", f"{rows[0][1]}, in {tokenizer_to}")]
    for name in ("train", "valid", "test"):
        shard = getattr(corpus, name)
        count, size = len(shard.tokens), shard.text_bytes
        if settings.objective.form in WHOLE:  # ids, and what is beside them, alternately
            each = EACH.get(settings.objective.name, 2)
            what = {"chat": "chat", "policy": "prompt"}.get(settings.objective.name, "record")
            sizes = np.diff(shard.offsets.astype(np.int64)).reshape(-1, each)
            many = f"{len(sizes)} {what}{'s' * (len(sizes) != 1)}"
            rows.append((name, f"{many}, {sizes[:, : each - 1 : 2].sum():,} tokens"))
            continue
        ratio = f", {size / count:.2f} bytes a token" if count else ""
        rows.append((name, f"{shard.documents} documents, {human(size)}, {count:,} tokens{ratio}"))
    return rows + [(f"skipped: {why}", str(n)) for why, n in corpus.skipped.items()]


def tokenize_part(settings: Settings, part: data.Part, *, cache: Path) -> list[tuple[str, str]]:
    """Prepare a part of the corpus, unless that is done, and return facts of it."""
    settings, tokenizer = _with_tokenizer(settings, parted=True)
    encoder, options = _encoding(settings, tokenizer, None)
    with bar(f"part {part.number} of {part.of}") as progress:
        record, reused = data.prepare_part(
            settings.data, encoder, cache / "data", part, progress=progress, **options
        )
        progress.close("it was there" if reused else "written")
    counts = zip(record["tokens"].items(), record["documents"].values(), strict=True)
    return [
        ("part", f"{part.number} of {part.of} ({'reused' if reused else 'written'})"),
        ("files", str(len(record["files"]))),
        *((name, f"{documents} documents, {n:,} tokens") for (name, n), documents in counts),
    ]


def _with_tokenizer(settings: Settings, *, parted: bool) -> tuple[Settings, Tokenizer]:
    kind = settings.tokenizer.kind
    if parted and kind in (*TRAINED, "chars"):
        raise ConfigError(
            f"tokenizer.kind={kind} is made of all the text, which no part has; make one of some "
            f"of it (jaxgen tokenize CONFIG tokenizer.kind=bpe data.files=[SOME] --tokenizer-to "
            f"tok), then give tokenizer.kind=file tokenizer.file=tok/tokenizer.model"
        )
    tokenizer = make_tokenizer(settings)
    return resolve(settings, tokenizer), tokenizer

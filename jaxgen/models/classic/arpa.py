"""N-grams in ARPA's text format, which KenLM, SRILM and speech recognisers read and write.

Lines end at "\\n" or "\\r\\n" and fields are separated by spaces and tabs; any other character,
such as a no-break space, may be part of a word. The format: doc/ngram-format of SRILM.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError, DataError
from jaxgen.models.classic.ngram import NGram, Params

BEGIN = "<s>"
NEVER = -99.0  # ARPA's log10 of a probability of zero
TEN = math.log(10)
MAX_BYTES = 1 << 34
SPACES = re.compile(r"[ \t]+")
BROKEN = re.compile(r"[ \t\n\v\f\r]")  # white space of C, which ends a word for some readers
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-inf", re.ASCII)
COUNT = re.compile(r"ngram[ \t]+(\d{1,3})[ \t]*=[ \t]*(\d{1,15})", re.ASCII)
SECTION = re.compile(r"\\(\d{1,3})-grams:", re.ASCII)


class Gram(NamedTuple):
    """A line of the file, logarithms to the base 10; backoff None: the line gives none."""

    line: int
    logp: float
    words: tuple[str, ...]
    backoff: float | None


def write(path: str | PathLike, params: Params, config: NGram, names: Sequence[str]) -> None:
    """Write params as an ARPA file, whole or not at all.

    names: [V] a word for each id; the begin of documents is written as <s>. Raises DataError for
    names that are empty, hold a space, tab or line end, or occur twice, and for params with NaN.
    """
    words = [*names[: config.vocab_size], *([BEGIN] if config.begin is None else [])]
    words[config.first] = BEGIN
    if len(words) != config.size or len(set(words)) != len(words):
        raise DataError(f"an ARPA file wants {config.vocab_size} words, each once")
    wrong = next((word for word in words if not word or BROKEN.search(word)), None)
    if wrong is not None:
        raise DataError(f"the word {wrong!r} is empty or holds white space; ARPA can't hold it")
    for n, level in params.items():
        if np.isnan(level["logp"]).any() or np.isnan(level["backoff"]).any():
            raise DataError(f"the {n}-grams hold NaN, which ARPA can't hold; train them again")
    files.write(path, "\n".join(_lines(params, config, words)) + "\n")


def _lines(params: Params, config: NGram, words: list[str]) -> Iterator[str]:
    levels = [params[str(n)] for n in range(1, config.order + 1)]
    yield "\\data\\"
    for n, level in enumerate(levels, start=1):
        yield f"ngram {n}={len(level['logp'])}"
    texts = words
    for n, level in enumerate(levels, start=1):
        if n > 1:
            contexts = np.repeat(np.arange(len(level["starts"]) - 1), np.diff(level["starts"]))
            pairs = zip(contexts.tolist(), level["words"].tolist(), strict=True)
            texts = [f"{texts[context]} {words[word]}" for context, word in pairs]
        yield ""
        yield f"\\{n}-grams:"
        rows = zip(texts, level["logp"].tolist(), level["backoff"].tolist(), strict=True)
        for text, logp, backoff in rows:
            tail = f"\t{_format_log10(backoff)}" if n < config.order else ""
            yield f"{_format_log10(logp)}\t{text}{tail}"
    yield ""
    yield "\\end\\"


def _format_log10(natural: float) -> str:
    return f"{natural / TEN if natural > -math.inf else NEVER:.7g}"


def read(path: str | PathLike) -> tuple[NGram, Params, list[str]]:
    """Return (config, params, words) of an ARPA file; ids follow its unigrams, <s> is the last id.

    Raises CheckpointError, with the line, for a malformed file: no \\data\\ or \\end\\, a missing
    section, a wrong number of n-grams, a duplicate n-gram, an unknown word, or a context that is
    missing or has no back-off weight.
    """
    path = Path(path)
    raw = files.read_artifact(path, "ARPA file", MAX_BYTES)
    try:
        rows = files.lines(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 at byte offset {error.start}") from error
    sections = _sections(path, rows)
    words = [gram.words[0] for gram in sections[0] if gram.words[0] != BEGIN]
    if not words:
        raise CheckpointError(f"{path} has no words; it is no ARPA file, or truncated")
    ids = {word: i for i, word in enumerate([*words, BEGIN])}
    config = NGram(vocab_size=len(words), order=len(sections))
    params: Params = {}
    index: dict[tuple[int, ...], int] = {}
    for n, section in enumerate(sections, start=1):
        lower = sections[n - 2] if n > 1 else []
        index, params[str(n)] = _level(path, section, ids, index, lower)
    return config, params, words


def _sections(path: Path, rows: list[str]) -> list[list[Gram]]:
    """Return the n-grams of the file by order; their numbers must match \\data\\."""
    head = next((i for i, row in enumerate(rows) if row.rstrip(" \t") == "\\data\\"), None)
    if head is None:
        raise CheckpointError(f"{path}:1: there is no \\data\\; this is no ARPA file")
    counts: list[tuple[int, int]] = []  # (line, n-grams) of each order
    sections: list[list[Gram]] = []
    begins: list[int] = []
    for number, row in enumerate(rows[head + 1 :], start=head + 2):
        row = row.strip(" \t")
        if not row:
            continue
        if row == "\\end\\":
            _check_counts(path, counts, sections, begins, number)
            return sections
        if begin := SECTION.fullmatch(row):
            if int(begin[1]) != len(sections) + 1 or int(begin[1]) > len(counts):
                raise CheckpointError(
                    f"{path}:{number}: {row!r} is out of order: \\data\\ names {len(counts)} "
                    f"orders, and {len(sections)} are before it"
                )
            sections.append([])
            begins.append(number)
        elif sections:
            sections[-1].append(_gram(path, number, row, len(sections), len(counts)))
        else:
            counts.append((number, _count(path, number, row, len(counts) + 1)))
    raise CheckpointError(f"{path}:{len(rows)}: the file ends without \\end\\; it is truncated")


def _count(path: Path, number: int, row: str, order: int) -> int:
    match = COUNT.fullmatch(row)
    if match is None or int(match[1]) != order:
        raise CheckpointError(
            f'{path}:{number}: {row[:60]!r} should be "ngram {order}=" and a number, or a section'
        )
    return int(match[2])


def _check_counts(path: Path, counts, sections, begins, end: int) -> None:
    for n, ((line, count), section) in enumerate(zip(counts, sections, strict=False), start=1):
        if count != len(section):
            raise CheckpointError(
                f"{path}:{begins[n - 1]}: \\{n}-grams: holds {len(section)} n-grams, but line "
                f"{line} says ngram {n}={count}; the file is damaged"
            )
    if not counts or len(sections) < len(counts):
        raise CheckpointError(
            f"{path}:{end}: \\end\\ comes before \\{len(sections) + 1}-grams:; the file is damaged"
        )


def _gram(path: Path, number: int, row: str, n: int, orders: int) -> Gram:
    parts = SPACES.split(row)
    logs = [parts[0], *parts[n + 1 :]]
    if not n + 1 <= len(parts) <= n + 2 or not all(map(NUMBER.fullmatch, logs)):
        raise CheckpointError(
            f"{path}:{number}: {row[:60]!r} is no {n}-gram; a line holds log10 p, {n} words and "
            f"perhaps log10 of the back-off weight"
        )
    logp, backoff = (float(text) if text else None for text in (*logs, "")[:2])
    assert logp is not None
    if logp > 0:
        raise CheckpointError(f"{path}:{number}: {logs[0]} is the log of a probability above 1")
    if n == orders and backoff:
        raise CheckpointError(
            f"{path}:{number}: an n-gram of the highest order has a back-off weight, {logs[1]}"
        )
    return Gram(number, logp, tuple(parts[1 : n + 1]), backoff)


def _level(
    path: Path,
    section: list[Gram],
    ids: dict[str, int],
    contexts: dict[tuple[int, ...], int],
    lower: list[Gram],
):
    """Return ({ids: index}, arrays) of an order's n-grams; contexts: that index one order below."""
    rows: dict[tuple[int, ...], Gram] = {}
    weights = {gram.words: gram for gram in lower}
    for gram in section:
        where, text = f"{path}:{gram.line}", " ".join(gram.words)
        try:
            key = tuple(ids[word] for word in gram.words)
        except KeyError as error:
            raise CheckpointError(f"{where}: {error.args[0]!r} is no unigram") from None
        if key in rows:
            raise CheckpointError(f"{where}: {text!r} is there twice, first in {rows[key].line}")
        if len(key) > 1:
            context = weights.get(gram.words[:-1])
            if context is None:
                raise CheckpointError(f"{where}: the context of {text!r} is no {len(key) - 1}-gram")
            if context.backoff is None:
                raise CheckpointError(
                    f"{path}:{context.line}: {' '.join(context.words)!r} has no back-off weight, "
                    f"but is the context of {text!r} in line {gram.line}"
                )
        rows[key] = gram
    # Sorted by context, so that a slice holds all n-grams of one.
    keys = sorted(rows, key=lambda key: (contexts.get(key[:-1], 0), key[-1]))
    table = [rows[key] for key in keys]
    level = {
        "logp": _natural([gram.logp for gram in table]),
        "backoff": _natural([gram.backoff or 0.0 for gram in table]),
    }
    index = {key: i for i, key in enumerate(keys)}
    if len(keys[0] if keys else ()) == 1:
        if len(keys) != len(ids):
            raise CheckpointError(f"{path}:{table[0].line}: there is no unigram {BEGIN}")
        return index, level
    order = np.asarray([contexts[key[:-1]] for key in keys], np.int64)
    words = np.asarray([key[-1] for key in keys], np.int32)
    starts = np.searchsorted(order, np.arange(len(contexts) + 1)).astype(np.int32)
    return index, {"words": words, "starts": starts, **level}


def _natural(logs: list[float]) -> np.ndarray:
    return np.asarray([log * TEN if log > NEVER else -math.inf for log in logs], np.float32)

"""N-grams in ARPA's text format, which KenLM, SRILM and speech recognisers read and write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError, DataError
from jaxgen.models.classic.ngram import NGram, Params

BEGIN = "<s>"
NEVER = -99.0  # ARPA's log10 of a probability of zero
TEN = math.log(10)


def write(path: str | PathLike, params: Params, config: NGram, names: Sequence[str]) -> None:
    """Write params as an ARPA file, whole or not at all.

    names: [V] a word for each id; the begin of documents is written as <s>. Raises DataError for
    names that are empty, hold white space, or occur twice.
    """
    words = [*names[: config.vocab_size], *([BEGIN] if config.begin is None else [])]
    words[config.first] = BEGIN
    if len(words) != config.size or len(set(words)) != len(words):
        raise DataError(f"an ARPA file wants {config.vocab_size} words, each once")
    wrong = next((word for word in words if not word or len(word.split()) != 1), None)
    if wrong is not None:
        raise DataError(f"the word {wrong!r} is empty or holds white space; ARPA can't hold it")
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
            shown = f"{logp / TEN if logp > -math.inf else NEVER:.7g}"
            tail = f"\t{backoff / TEN:.7g}" if n < config.order else ""
            yield f"{shown}\t{text}{tail}"
    yield ""
    yield "\\end\\"


def read(path: str | PathLike) -> tuple[NGram, Params, list[str]]:
    """Return (config, params, words) of an ARPA file; id i is the i-th word but <s>, which is last.

    Raises CheckpointError, with the line, for a malformed file, a word that is no unigram, or an
    n-gram whose context is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such ARPA file; correct the path")
    with files.refusals(path):
        raw = path.read_bytes()
    try:
        rows = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 at byte offset {error.start}") from error
    sections = _sections(path, rows)
    if not any(text != BEGIN for _, _, text, _ in (sections or [[]])[0]):
        raise CheckpointError(f"{path} has no words; it is no ARPA file, or truncated")
    words = [text for _, _, text, _ in sections[0] if text != BEGIN]
    ids = {word: i for i, word in enumerate([*words, BEGIN])}
    if len(ids) != len(words) + 1:
        raise CheckpointError(f"{path} has the same unigram twice")
    config = NGram(vocab_size=len(words), order=len(sections))
    params: Params = {}
    known: dict[tuple[int, ...], int] = {}
    for n, section in enumerate(sections, start=1):
        known, params[str(n)] = _level(path, n, section, ids, known)
    return config, params, words


def _sections(path: Path, rows: list[str]) -> list[list[tuple[int, float, str, float]]]:
    """Return (line number, log10 p, text, log10 backoff) of each n-gram, order by order."""
    found: list[list[tuple[int, float, str, float]]] = []
    for number, row in enumerate(rows, start=1):
        if row.startswith("\\") and row.endswith("-grams:"):
            found.append([])
            if row != f"\\{len(found)}-grams:":
                raise CheckpointError(f"{path}:{number}: {row[:40]!r} is out of order")
        elif row.strip() == "\\end\\":
            return found
        elif found and row.strip():
            found[-1].append(_row(path, number, row, len(found)))
    raise CheckpointError(f"{path} lacks its \\end\\: it is no ARPA file, or truncated")


def _row(path: Path, number: int, row: str, n: int) -> tuple[int, float, str, float]:
    parts = row.split()
    try:
        backoff = float(parts[n + 1]) if len(parts) == n + 2 else 0.0
        logp = float(parts[0])
        if len(parts) not in (n + 1, n + 2) or logp > 0 or not math.isfinite(logp + backoff):
            raise ValueError
    except (ValueError, IndexError):
        raise CheckpointError(
            f"{path}:{number}: {row[:60]!r} is no {n}-gram; a line holds log10 p, {n} words and "
            f"perhaps log10 of the backoff"
        ) from None
    return number, logp, " ".join(parts[1 : n + 1]), backoff


def _level(path: Path, n: int, section, ids, contexts):
    table = []
    for number, logp, text, backoff in section:
        try:
            key = tuple(ids[word] for word in text.split(" "))
        except KeyError as error:
            raise CheckpointError(f"{path}:{number}: {error.args[0]!r} is no unigram") from None
        context = 0 if n == 1 else contexts.get(key[:-1])
        if context is None:
            raise CheckpointError(f"{path}:{number}: the context of {text!r} is no {n - 1}-gram")
        table.append((context, key[-1], logp if logp > NEVER else -math.inf, backoff, key))
    table.sort()
    known = {row[-1]: i for i, row in enumerate(table)}
    if len(known) != len(table):
        raise CheckpointError(f"{path} has the same {n}-gram twice")
    level = {
        "logp": np.asarray([row[2] * TEN for row in table], np.float32),
        "backoff": np.asarray([row[3] * TEN for row in table], np.float32),
    }
    if n == 1:
        if len(table) != len(ids):
            raise CheckpointError(f"{path} has no unigram {BEGIN}")
        return known, level
    order = np.asarray([row[0] for row in table], np.int64)
    words = np.asarray([row[1] for row in table], np.int32)
    starts = np.searchsorted(order, np.arange(len(contexts) + 1)).astype(np.int32)
    return known, {"words": words, "starts": starts, **level}

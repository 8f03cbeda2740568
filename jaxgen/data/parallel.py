"""Tokenising in several processes, in order; a worker that dies is an error, never a wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import DataError

WORTH_IT = 64 << 20  # bytes of text from which starting processes (a second each) pays
Draw = tuple[float, int]  # BPE-dropout and the seed of its chances
Chunk = tuple[str, list[str], Draw | None]


class Encoded(NamedTuple):
    """A chunk as ids: of all its documents in a row, and how many each has.

    counts: how many documents came of each text. refused: (number of the text, reason, in words)
    of those that none came of; notes: what else is to be said of texts, with how often.
    """

    split: str
    ids: np.ndarray
    lengths: list[int]
    text_bytes: int
    counts: list[int]
    refused: list[tuple[int, str, str]]
    notes: dict[str, int]


class Refused(NamedTuple):
    """What an encoder of records returns for one that can't be used: a reason, and in words."""

    reason: str
    line: str


class EncodedRecord(NamedTuple):
    """What an encoder of records returns for one: its documents, and what is to be said of it."""

    documents: list[list[int]]
    note: str = ""


_tokenizer: Any = None  # of a worker process


def encoded(chunks: Iterator[Chunk], tokenizer: Any, total: int) -> Iterator[Encoded]:
    """Yield the chunks as ids, in order.

    chunks: (split, texts, how they are drawn or None). total: bytes of text, which decides whether
    other processes help. Raises DataError, also when one of them dies.
    """
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if total < WORTH_IT or processes < 2:
        for chunk in chunks:
            yield _encode(tokenizer, *chunk)
        return
    # Spawned, since a fork would copy JAX's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_begin, initargs=(tokenizer, os.getpid())
    ) as pool:
        yield from _in_order(pool, chunks, processes)


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator[Chunk], ahead: int) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_work, *chunk))
            if len(waiting) > 2 * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenising process died (killed, or out of memory); start again, with fewer "
            "processors allowed (taskset) if memory is short"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def watch_parent(parent: int) -> None:
    """End this process soon after its parent's death, which may be a kill."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="jaxgen-parent", daemon=True).start()


def _begin(tokenizer: Any, parent: int) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair; the pool ends us otherwise
    watch_parent(parent)
    _tokenizer = tokenizer


def whole_documents(tokenizer: Any, texts: list[str], draw: Draw | None) -> list[list[int]]:
    """Return the ids of each text between bos and eos, where the tokenizer has them."""
    rows = (
        tokenizer.encode_many(texts)
        if draw is None
        else tokenizer.encode_with_dropout(texts, *draw)
    )
    special = tokenizer.special
    before, after = ([] if i is None else [i] for i in (special.bos, special.eos))
    return [[*before, *row, *after] for row in rows]


def _work(split: str, texts: list[str], draw: Draw | None) -> Encoded:
    return _encode(_tokenizer, split, texts, draw)


def _encode(tokenizer: Any, split: str, texts: list[str], draw: Draw | None) -> Encoded:
    refused, notes = [], Counter[str]()
    if hasattr(tokenizer, "encode_records"):
        rows, counts = [], []
        for number, record in enumerate(tokenizer.encode_records(texts)):
            documents = []
            if isinstance(record, Refused):
                refused.append((number, *record))
            else:
                documents = record.documents
                notes.update([record.note] if record.note else [])
            rows += documents
            counts.append(len(documents))
    else:
        make = getattr(tokenizer, "encode_documents", partial(whole_documents, tokenizer))
        rows = make(texts, draw)
        counts = [1] * len(rows)
    ids = np.fromiter(chain.from_iterable(rows), np.uint32, sum(map(len, rows)))
    size = sum(len(text.encode()) for text in texts)
    return Encoded(split, ids, [len(row) for row in rows], size, counts, refused, dict(notes))

"""Tokenising in several processes, in order; a worker that dies is an error, never a wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any

import numpy as np

from jaxgen.errors import DataError

WORTH_IT = 64 << 20  # bytes of text from which starting processes (a second each) pays
Draw = tuple[float, int]  # BPE-dropout and the seed of its chances
Chunk = tuple[str, list[str], Draw | None]
Encoded = tuple[str, np.ndarray, list[int], int]

_tokenizer: Any = None  # of a worker process


def encoded(chunks: Iterator[Chunk], tokenizer: Any, total: int) -> Iterator[Encoded]:
    """Yield (split, ids of all its documents, number of ids of each, UTF-8 bytes), in order.

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
    if hasattr(tokenizer, "encode_documents"):
        rows = tokenizer.encode_documents(texts, draw)
    else:
        rows = whole_documents(tokenizer, texts, draw)
    ids = np.fromiter(chain.from_iterable(rows), np.uint32, sum(map(len, rows)))
    return split, ids, [len(row) for row in rows], sum(len(text.encode()) for text in texts)

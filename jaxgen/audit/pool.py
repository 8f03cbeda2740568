"""Pieces of text that a run was trained on, and others of the same kind that it was not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from jaxgen.data.canaries import canary_texts, planted
from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError, DataError
from jaxgen.run.job import Run
from jaxgen.text.loaded_model import LoadedModel

Ids = list[int]
SHORTEST = 8  # tokens of a piece; less says nothing


@dataclass(frozen=True)
class Pool:
    """What membership is guessed of.

    rows: ids, as the model reads them; texts: the same in words; member: whether the run was
    trained on it; canary: whether it is one of the run's canaries. rest: training text beside it.
    """

    rows: list[Ids]
    texts: list[str]
    member: Bool[np.ndarray, "N"]
    canary: Bool[np.ndarray, "N"]
    rest: list[str]


def draw_pool(run: Run, model: LoadedModel, number: int, seed: int) -> Pool:
    """Return `number` pieces of training text, as many of held-out text, and the canaries.

    A piece is a document, or a part of one as long as the context. Raises DataError for a run
    without held-out text.
    """
    canaries = run.settings.data.canaries
    if run.settings.tokenizer.dropout:
        raise ConfigError(
            f"tokenizer.dropout={run.settings.tokenizer.dropout} cuts the training text in many "
            f"ways, none of which is the text; audit a run without it"
        )
    inside = planted(canaries)
    train = list(_pieces(run.corpus.train, run.settings.model.context,
                         but=int(inside.sum()) * canaries.repeats))  # fmt: skip
    held = [*_pieces(run.corpus.valid, run.settings.model.context),
            *_pieces(run.corpus.test, run.settings.model.context)]  # fmt: skip
    decode = model.tokenizer.decode
    members, rest = _chosen(train, model, number, seed)
    others, _ = _chosen(held, model, number, seed + 1)
    if min(len(members), len(others)) < 2:
        raise DataError(
            f"{run.folder} has {len(members)} pieces of {SHORTEST} tokens or more to train on, and "
            f"{len(others)} held out; 2 of each are needed: give more text, or data.valid_fraction"
        )
    texts = [decode(row) for row in [*members, *others]] + canary_texts(canaries)
    return Pool(
        [*members, *others, *(model.ids(text) for text in canary_texts(canaries))],
        texts,
        np.concatenate([np.arange(len(members) + len(others)) < len(members), inside]),
        np.arange(len(texts)) >= len(members) + len(others),
        [decode(row) for row in rest],
    )


def _pieces(shard: TokenShard, width: int, but: int = 0) -> Iterator[Ids]:
    """Yield the parts of each document; but: so many of the last are left out."""
    offsets = shard.offsets.astype(np.int64)
    for begin, end in pairwise(offsets):
        if but and begin >= offsets[-1 - but]:
            return
        for start in range(int(begin), int(end), width):
            yield shard.tokens[start : min(start + width, int(end))].tolist()


def _chosen(
    rows: list[Ids], model: LoadedModel, number: int, seed: int
) -> tuple[list[Ids], list[Ids]]:
    """Return (rows drawn at random that are read as they were written, all others)."""
    chosen: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(rows)).tolist():
        if len(chosen) == number:
            break
        if len(rows[i]) >= SHORTEST and _is_whole(rows[i], model):
            chosen.append(i)
    own = set(chosen)
    return [rows[i] for i in chosen], [row for i, row in enumerate(rows) if i not in own]


def _is_whole(row: Ids, model: LoadedModel) -> bool:
    """Return whether the words of a row are cut into the same ids, but for what is around."""
    around = {*model.around[0], *model.around[1]}
    text = model.tokenizer.decode(row)
    return bool(text) and model.tokenizer.encode(text) == [i for i in row if i not in around]

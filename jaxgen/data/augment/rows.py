"""Rows of classes whose texts are changed anew in each epoch, and whose classes are balanced.

What is drawn for a record is a function of seed, epoch and record alone: whichever process makes a
batch, and however often a run is begun again, it is the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.augment.settings import AugmentSettings
from jaxgen.data.augment.texts import Tools, change, digest, read_tools
from jaxgen.data.objectives.classes import ClassRows, class_rows
from jaxgen.data.pack import Batch
from jaxgen.data.parallel import whole_documents
from jaxgen.data.random import order, stream_keys
from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError

HALVES = 1 << 32


@dataclass(frozen=True, eq=False)
class AugmentedRows:
    """The rows of a shard of classes after `changes`; balanced: records of each class, or None."""

    rows: ClassRows
    tokenizer: Any = field(repr=False)
    changes: tuple[tuple[AugmentSettings, Tools], ...]
    balanced: tuple[np.ndarray, ...] | None
    seed: int
    name: str

    @property
    def shard(self) -> TokenShard:
        """The tokens."""
        return self.rows.shard

    @property
    def count(self) -> int:
        """Texts."""
        return self.rows.count

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return a batch as `ClassRows` does, of changed texts."""
        own = stream_keys(self.seed, epochs * self.count + rows)
        records = rows if self.balanced is None else self._balanced(rows, epochs, self.balanced)
        changed = {
            place: ids
            for place, (record, key) in enumerate(zip(records, own, strict=True))
            if record >= 0 and (ids := self._changed(int(record), int(key))) is not None
        }
        return self.rows.batch(records, epochs, keys, changed)

    def _balanced(self, rows: np.ndarray, epochs: np.ndarray, classes: Sequence[np.ndarray]):
        """Return a record for each row: of the classes in turn, of each all before one again."""
        each = -(-self.count // len(classes))
        records = np.full_like(rows, -1)
        for place in np.flatnonzero(rows >= 0):
            number, kind = divmod(int(rows[place]), len(classes))
            records_of = classes[kind]
            turn, at = divmod(int(epochs[place]) * each + number, len(records_of))
            seeds = stream_keys(self.seed, np.array([turn * len(classes) + kind], np.int64))
            records[place] = records_of[order(seeds, len(records_of), stream=1)[0, at]]
        return records

    def _changed(self, record: int, key: int) -> list[int] | None:
        """Return the ids of a record's text after the changes; None: it is as it was."""
        chance, text, dropout = random.Random(key), None, 0.0  # noqa: S311 - no secret
        for settings, tools in self.changes:
            if chance.random() >= settings.chance:
                continue
            text = _text(self.shard, self.tokenizer, record) if text is None else text
            if settings.kind == "pieces":
                dropout = settings.rate
            else:
                text = change(text, settings, tools, chance)
        if text is None or not text.strip():
            return None
        draw = (dropout, key % HALVES) if dropout else None
        return whole_documents(self.tokenizer, [text], draw)[0]


@dataclass(frozen=True)
class Augmented:
    """The objective of classes with the changes of `data.augment`, in training alone."""

    settings: tuple[AugmentSettings, ...]
    tokenizer: Any

    def __call__(
        self, shard: TokenShard, *, context: int, seed: int, ordered: bool
    ) -> ClassRows | AugmentedRows:
        """Return the rows of a shard; those of a split that is read in order as they are."""
        rows = class_rows(shard, context=context, seed=seed, ordered=ordered)
        own = [one for one in self.settings if one.kind != "mixup"]
        if ordered or not own:
            return rows
        texts = lambda: [_text(shard, self.tokenizer, n) for n in range(rows.count)]  # noqa: E731
        changes = tuple((one, read_tools(one, texts)) for one in own if one.kind != "balance")
        balanced = None
        if len(changes) < len(own):
            labels = shard.tokens[shard.offsets.astype(np.int64)[1:-1:2]]
            balanced = tuple(np.flatnonzero(labels == label) for label in np.unique(labels))
        name = f"{rows.name}, augmented {digest(own)}"
        return AugmentedRows(rows, self.tokenizer, changes, balanced, seed, name)


def check(settings: Any) -> None:
    """Raise ConfigError for changes that a run can't have, named by their kind.

    settings: all of the run's.
    """
    train, name = settings.train, settings.objective.name
    kinds = [one.kind for one in settings.data.augment]
    for kind in kinds:
        what = f"data.augment kind={kind}"
        mixed = kind == "mixup"
        if name != "classes":
            raise ConfigError(
                f"{what} is for objective.name=classes, whose labels stay right, not {name}; "
                f"`jaxgen augment` writes changed texts for it"
            )
        for at_fault, other, why in (
            (kind == "pieces" and settings.tokenizer.kind != "bpe",
             f"tokenizer.kind={settings.tokenizer.kind}", "only bpe has merges to leave out"),
            (train.privacy.on, "train.privacy", "which counts the rows that a record is in"),
            (mixed and train.adversarial.on, "train.adversarial", "which moves the vectors, too"),
            (mixed and settings.mesh.form != "jit", f"mesh.form={settings.mesh.form}",
             "for rows of other devices are mixed in"),
            (mixed and settings.model.experts.number, "model.experts", "which have losses of rows"),
            (kind in ("mixup", "balance") and kinds.count(kind) > 1, "another", "give one"),
        ):  # fmt: skip
            if at_fault:
                raise ConfigError(f"{what} does not go with {other}: {why}")


def _text(shard: TokenShard, tokenizer: Any, record: int) -> str:
    """Return the text of a record, without what stands around it."""
    begin, end = (int(n) for n in shard.offsets[2 * record : 2 * record + 2])
    ids, special = shard.tokens[begin:end].tolist(), tokenizer.special
    ids = ids[1:] if special.bos is not None and ids[:1] == [special.bos] else ids
    ids = ids[:-1] if special.eos is not None and ids[-1:] == [special.eos] else ids
    return tokenizer.decode(ids)

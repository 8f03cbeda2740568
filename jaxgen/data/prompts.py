"""Records of prompts, which a model is to go on from by itself, and their rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.completions import TooLong
from jaxgen.data.messages import PROMPT, extras
from jaxgen.data.pack import Batch, documents_of
from jaxgen.data.preferences import ids_as_bytes, text_or_messages
from jaxgen.data.shard import TokenShard
from jaxgen.errors import DataError


def prompt_record(record: Mapping[str, Any], key: str, where: str) -> dict[str, Any] | None:
    """Return a record with its prompt, a text or messages, checked; None without one. Raises Bad.

    The other fields stay as they are, for a reward to read.
    """
    if key not in record:
        return None
    return {**record, PROMPT: text_or_messages(record, PROMPT, where), **extras(record, where)}


@dataclass(frozen=True, eq=False)
class PromptRows:
    """Rows of one prompt each, of at most `width` tokens.

    The shard holds prompts and their whole records (`preferences.bytes_as_ids`) alternately.
    prompts: numbers of those used; dropped: those that were too long.
    """

    shard: TokenShard
    width: int
    name: str
    prompts: np.ndarray = field(repr=False)
    dropped: int

    @property
    def count(self) -> int:
        """Prompts."""
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens that an epoch reads."""
        return int(np.diff(self.shard.offsets.astype(np.int64))[2 * self.prompts].sum())

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return tokens [B, P] padded on the right, and of each row lengths, weights and record.

        record: [B] int64, the place among `prompts`, -1 for padding, which has weight 0; index: as
        of other rows.
        """
        offsets = self.shard.offsets.astype(np.int64)
        tokens, index = np.zeros((len(rows), self.width), np.int32), np.full(len(rows), -1)
        lengths = np.ones(len(rows), np.int32)
        for at, row in enumerate(rows):
            if row >= 0:
                begin, end = offsets[2 * self.prompts[row] :][:2]
                lengths[at], index[at] = end - begin, begin
                tokens[at, : end - begin] = self.shard.tokens[begin:end]
        return {
            "tokens": tokens,
            "lengths": lengths,
            "weights": (np.asarray(rows) >= 0).astype(np.float32),
            "record": np.asarray(rows, np.int64),
            "index": index.astype(np.int64),
        }

    def record(self, row: int) -> dict[str, Any]:
        """Return the record of a row."""
        return record_of(self.shard, int(self.prompts[row]))

    def notes(self) -> list[str]:
        """Return what a reader should know of prompts that leave no room for a completion."""
        line = (
            f"{self.dropped:,} of {self.count + self.dropped:,} prompts have more than "
            f"{self.width} tokens, which is what a completion leaves: left out"
        )
        return [line] if self.dropped else []


def record_of(shard: TokenShard, number: int) -> dict[str, Any]:
    """Return the record beside a prompt of a shard."""
    begin, end = (int(at) for at in shard.offsets[2 * number + 1 :][:2])
    return json.loads(ids_as_bytes(shard.tokens[begin:end]))


def prompt_rows(shard: TokenShard, *, width: int, completion: int, too_long: TooLong) -> PromptRows:
    """Return the rows of a shard of prompts; DataError if none leaves room for a completion.

    width: of the model's context, of which a completion has the last `completion` tokens. too_long:
    refuse raises DataError for a prompt that does not fit; else it is left out, for a prompt that
    lost a part would ask something else.
    """
    room = width - completion
    sizes = np.diff(shard.offsets.astype(np.int64))[::2]
    long = sizes > room
    if long.any() and too_long == "refuse":
        number = int(np.flatnonzero(long)[0])
        raise DataError(
            f"{documents_of(shard, int(shard.offsets[2 * number]), 1)} is a prompt of "
            f"{sizes[number]} tokens, but model.context={width} less {completion} of a completion "
            f"leaves {room} (objective.too_long=refuse); set it to drop, or give a larger "
            f"model.context"
        )
    if long.all():
        raise DataError(
            f"{shard.path} holds no prompt of at most {room} tokens, which is what "
            f"objective.target={completion} leaves of model.context={width}; give more prompts, or "
            f"a larger context"
        )
    used = np.flatnonzero(~long)
    return PromptRows(shard, room, f"prompts {room}", used, len(sizes) - len(used))

"""Records of preferences, in TRL's words, and their rows: two texts each, and what is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.completions import TooLong
from jaxgen.data.messages import COMPLETION, PROMPT, extras, messages_of
from jaxgen.data.pack import Batch, documents_of
from jaxgen.data.record_values import kind_name
from jaxgen.data.shard import TokenShard
from jaxgen.data.streams import Bad
from jaxgen.errors import DataError

CHOSEN, REJECTED, LABEL, MARGIN = "chosen", "rejected", "label", "margin"
EACH = {"preferences": 5, "rewards": 5, "feedback": 3}  # documents of a shard that a record is


def preference_record(record: Mapping[str, Any], key: str, where: str) -> dict[str, Any] | None:
    """Return {prompt, chosen, rejected}, texts or lists of messages; None without chosen.

    Where there is no prompt, or only a text beside messages, it is what chosen and rejected have
    in common at their beginning. Raises Bad.
    """
    if key not in record:
        return None
    if REJECTED not in record:
        raise Bad("no such field", f"{where} has no field {REJECTED!r}")
    chosen, rejected = (text_or_messages(record, name, where) for name in (CHOSEN, REJECTED))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Bad("mixed", f"{where}: chosen and rejected must be both texts, or both messages")
    if chosen == rejected:
        raise Bad("equal", f"{where}: chosen and rejected are equal, so neither is preferred")
    texts = isinstance(chosen, str)
    own = None if record.get(PROMPT) is None else text_or_messages(record, PROMPT, where)
    if own is not None and isinstance(own, str) == texts:
        prompt = own
    else:
        size = shared(chosen, rejected)
        if texts and size and chosen[size - 1] == " ":
            size -= 1
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        if not prompt:
            raise Bad("no prompt", f"{where} has no prompt, and chosen and rejected share none")
    for name, value in ((CHOSEN, chosen), (REJECTED, rejected)):
        if not value:
            raise Bad("empty content", f"{where}: {name!r} says nothing after the prompt")
    margin = 0.0 if record.get(MARGIN) is None else _number(record[MARGIN], MARGIN, where)
    sides = [[prompt, chosen], [prompt, rejected]]
    return {"sides": sides, "numbers": [margin]} | extras(record, where)


def feedback_record(record: Mapping[str, Any], key: str, where: str) -> dict[str, Any] | None:
    """Return {prompt, completion, label}; None without completion. Raises Bad."""
    if key not in record:
        return None
    for name in (PROMPT, LABEL):
        if name not in record:
            raise Bad("no such field", f"{where} has no field {name!r}")
    prompt, completion = (
        text_or_messages(record, PROMPT, where),
        text_or_messages(record, COMPLETION, where),
    )
    if isinstance(prompt, str) != isinstance(completion, str):
        raise Bad("mixed", f"{where}: prompt and completion must be both texts, or both messages")
    label = record[LABEL]
    if not isinstance(label, bool):
        kind = kind_name(label)
        raise Bad("label", f"{where}: {LABEL!r} is {kind}; write true (liked) or false")
    return {"sides": [[prompt, completion]], "numbers": [float(label)]} | extras(record, where)


def text_or_messages(record: Mapping[str, Any], name: str, where: str) -> Any:
    """Return a field of a record, checked: a text that is not blank, or messages. Raises Bad."""
    value = record[name]
    if isinstance(value, str):
        if not value.strip():
            raise Bad("empty content", f"{where}: {name!r} is empty")
        return value
    if not isinstance(value, list):
        raise Bad("not text", f"{where}: {name!r} is {kind_name(value)}, neither text nor messages")
    return messages_of(value, name, where)


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise Bad("not a number", f"{where}: {name!r} is {value!r:.40}, not a finite number")
    return float(value)


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how much two texts, or rows of ids, have in common at their beginning."""
    size = min(len(one), len(other))
    return next((i for i in range(size) if one[i] != other[i]), size)


def bytes_as_ids(raw: bytes) -> list[int]:
    """Return bytes as hexadecimal digits, which any vocabulary has ids for."""
    return [int(digit, 16) for digit in raw.hex()]


def ids_as_bytes(ids: np.ndarray) -> bytes:
    """Return the bytes of `bytes_as_ids`."""
    return bytes.fromhex("".join(f"{int(i):x}" for i in ids))


def numbers_as_ids(numbers: list[float]) -> list[int]:
    """Return float32 numbers as ids, which `PreferenceRows` reads."""
    return bytes_as_ids(np.asarray(numbers, ">f4").tobytes())


def blank_texts(shape: tuple[int, ...]) -> Batch:
    """Return tokens, targets, segments, positions and weights of rows of padding."""
    names = ("tokens", "targets", "segments", "positions")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    return batch | {"weights": np.zeros(shape, np.float32)}


def write_text(batch: Batch, row: tuple[int, ...], ids: Any, mask: Any) -> None:
    """Write a text of ids and mask into a row of `blank_texts`; what is too long loses its end."""
    size = min(len(ids) - 1, batch["tokens"].shape[-1])
    values = {"tokens": ids[:size], "targets": ids[1 : size + 1], "weights": mask[1 : size + 1]}
    for name, value in {**values, "segments": 1, "positions": np.arange(size)}.items():
        batch[name][row][:size] = value


@dataclass(frozen=True, eq=False)
class PreferenceRows:
    """Rows of one record each: two texts side by side of `width` tokens, ends cut off.

    The shard holds of each record its texts, ids and mask alternately, and its number (a margin,
    or a label). Of single completions the second text is the prompt with the completion of the
    record before. records: numbers of those used. cut, dropped: as of `CompletionRows`.
    """

    shard: TokenShard
    width: int
    name: str
    records: np.ndarray = field(repr=False)
    cut: int
    dropped: int

    @property
    def count(self) -> int:
        """Records."""
        return len(self.records)

    @property
    def tokens(self) -> int:
        """Tokens that an epoch reads, at most."""
        return len(self.shard.tokens) // 2

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return tokens, targets, segments, positions, weights [B, 2, T]; a number [B]; and which.

        weights: 1 where the target is judged. label [B], of feedback, or margin [B]. record: [B]
        int64, the place among `records`, -1 for padding; index: as of other rows.
        """
        batch = blank_texts((len(rows), 2, self.width))
        numbers, index = np.zeros(len(rows), np.float32), np.full(len(rows), -1, np.int64)
        for at, row in enumerate(rows):
            if row < 0:
                continue
            sides, numbers[at], index[at] = self._read(int(row))
            for side, (ids, mask) in enumerate(sides):
                write_text(batch, (at, side), ids, mask)
        batch[LABEL if self.name == "feedback" else MARGIN] = numbers
        return batch | {"record": np.asarray(rows, np.int64), "index": index}

    def _read(self, row: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], float, int]:
        """Return the (ids, mask) of a row's texts, its number, and where in the shard it begins."""
        texts, numbers, begin = _texts(self.shard, int(self.records[row]), EACH[self.name])
        if len(texts) == 1:  # (x, y) and (x, y of another), of which only x is the same
            ids, mask = texts[0]
            other, judged = _texts(self.shard, int(self.records[row - 1]), EACH[self.name])[0][0]
            first, second = int(np.argmax(mask)), int(np.argmax(judged))
            mixed = np.concatenate([ids[:first], other[second:]])
            texts.append((mixed, np.concatenate([mask[:first], judged[second:]])))
        return texts, float(np.frombuffer(ids_as_bytes(numbers), ">f4")[0]), begin

    def notes(self) -> list[str]:
        """Return what a reader should know of texts that are longer than a row."""
        count, width = self.count + self.dropped, f"model.context={self.width}"
        lines = []
        if self.cut:
            lines.append(f"{self.cut:,} of {count:,} records are longer than {width} and lose ends")
        if self.dropped:
            lines.append(f"{self.dropped:,} of {count:,} records don't fit {width}: left out")
        return lines


def _texts(
    shard: TokenShard, record: int, each: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, int]:
    """Return the (ids, mask) of a record's texts, its number's digits, and where it begins."""
    offsets = shard.offsets[each * record : each * (record + 1) + 1].astype(np.int64)
    parts = [shard.tokens[a:b] for a, b in pairwise(offsets)]
    texts = [(parts[i], parts[i + 1]) for i in range(0, each - 1, 2)]
    return texts, parts[-1], int(offsets[0])


def preference_rows(
    shard: TokenShard, *, width: int, too_long: TooLong, name: str
) -> PreferenceRows:
    """Return the rows of a shard of preferences; DataError if it holds none.

    too_long: as of `completion_rows`; a record with a text that has nothing left to judge is left
    out.
    """
    each = EACH[name]
    cut, used = 0, []
    for record in range(shard.documents // each):
        texts, _, begin = _texts(shard, record, each)
        long = any(len(ids) > width + 1 for ids, _ in texts)
        if long and too_long == "refuse":
            raise DataError(
                f"{documents_of(shard, begin, 1)} is a text of more tokens than model.context="
                f"{width} takes (objective.too_long=refuse); set it to cut or drop, or give a "
                f"larger model.context"
            )
        judged = all(mask[1 : width + 1].any() for _, mask in texts)
        if judged and not (long and too_long == "drop"):
            cut += long
            used.append(record)
    if not used:
        raise DataError(
            f"{shard.path} holds no record that fits model.context={width}; give more, or a larger "
            f"context"
        )
    return PreferenceRows(
        shard=shard,
        width=width,
        name=name,
        records=np.asarray(used, np.int64),
        cut=cut,
        dropped=shard.documents // each - len(used),
    )

"""Token shards: the tokens of one split in one memory-mapped file that is checked when opened.

Layout: a header of 4096 bytes (MAGIC, then JSON padded with spaces), the tokens as little-endian
uint16 or uint32, zeros up to a multiple of 8, then the offsets of the documents as little-endian
uint64, one more than there are documents. The checksum is the sha256 of all that follows the
header, the digest the `RowDigest` of the documents' tokens. A shard that is joined of parts has in
the place of the tokens nothing, and after the offsets the parts, as JSON: path from the folder
above its own, tokens, checksum of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxgen.buckets import BucketPath
from jaxgen.data.digests import DigestCache, RowDigest
from jaxgen.data.joined import JoinedArray
from jaxgen.data.ranges import RangedArray
from jaxgen.errors import DataError

MAGIC = b"jaxgen tokens 2\n"
HEADER = 4096
BLOCK = 1 << 22
FIELDS = {
    "dtype": str,
    "tokens": int,
    "documents": int,
    "vocab_size": int,
    "text_bytes": int,
    "tokenizer": str,
    "sha256": str,
    "digest": list,
    "parts": int,
}
Tokens = np.ndarray | RangedArray | JoinedArray


@dataclass(frozen=True, eq=False)
class TokenShard:
    """The tokens of a split, in a row.

    tokens: [N] uint16 or uint32, of a bucket read by ranges; offsets: [documents + 1] uint64, where
    each document begins and, last, N; text_bytes: UTF-8 bytes of the text; digest: (hex) of the
    documents' tokens, in however many parts they lie; checksum: sha256 (hex) of the file; row: what
    the digest is of. Documents begin with bos and end with eos where the tokenizer has them.
    """

    tokens: Tokens
    offsets: np.ndarray
    text_bytes: int
    vocab_size: int
    digest: str
    checksum: str
    row: RowDigest
    documents: int
    path: Path
    stamp: tuple[int, int] = field(repr=False)

    @property
    def all_tokens(self) -> np.ndarray:
        """The tokens as an array, for which those of a bucket are all fetched."""
        return np.asarray(self.tokens)

    def check_unchanged(self) -> None:
        """Raise DataError if the file is not the one that was opened (size and time)."""
        try:
            now = _stamp(self.path)
        except OSError as error:
            raise DataError(f"{self.path} has vanished while it was in use") from error
        if isinstance(self.tokens, JoinedArray):
            self.tokens.check_next()
        if now != self.stamp:
            raise DataError(
                f"{self.path} has changed while it was in use; remove its folder and start again"
            )

    def __reduce__(self) -> Any:
        # A worker maps the file itself: sending the tokens would copy the corpus.
        return _reopen, (self.path, self.digest)


@dataclass(frozen=True, eq=False)
class Regrouped(TokenShard):
    """A shard with its documents in another order, in memory; `regroup` makes it."""

    shard: TokenShard | None = None
    order: np.ndarray | None = None

    def __reduce__(self) -> Any:
        return regroup, (self.shard, self.order)


def regroup(shard: TokenShard, order: np.ndarray) -> Regrouped:
    """Return a shard's documents in an order: of all their numbers, each once."""
    offsets = shard.offsets.astype(np.int64)
    sizes = np.diff(offsets)[order]
    begins = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(begins[-1]) + np.repeat(offsets[:-1][order] - begins[:-1], sizes)
    own = {name: getattr(shard, name) for name in TokenShard.__dataclass_fields__}
    own |= {"tokens": np.asarray(shard.tokens)[places], "offsets": begins.astype(np.uint64)}
    return Regrouped(**own, shard=shard, order=order)


def open_shard(
    path: Path,
    *,
    tokenizer: str | None = None,
    verify: bool = True,
    verified: DigestCache | None = None,
) -> TokenShard:
    """Map a shard; DataError if it is damaged, or not of the tokenizer with that fingerprint.

    verify: also read it through: digest, ids below the vocabulary, offsets in order. verified: the
    shards that were, which are not read through again unless they were touched since. Parts of a
    joined one are opened when they are read, unless they are to be verified.
    """
    header = _read_header(path)
    kind, count, documents = header["dtype"], header["tokens"], header["documents"]
    room = 0 if header["parts"] else _room(kind, count)
    size = room + 8 * (documents + 1) + header["parts"]
    if HEADER + size != path.stat().st_size:
        raise _damaged(
            path,
            f"its header tells of {count} tokens and {documents} documents, which is "
            f"{HEADER + size} bytes, but it has {path.stat().st_size}",
        )
    if tokenizer is not None and tokenizer != header["tokenizer"]:
        raise DataError(
            f"{path} was written with another tokenizer ({header['tokenizer'][:12]}, not "
            f"{tokenizer[:12]}); prepare the text again"
        )
    offsets = np.asarray(_map(path, "<u8", HEADER + room, documents + 1))
    if header["parts"]:
        tokens: Tokens = _open_parts(path, header, tokenizer, verified, verify)
    else:
        tokens = _map(path, f"<{kind}", HEADER, count)
    if verify:

        def read_through(path: Path) -> str:
            _verify(path, header, tokens, offsets)
            return header["sha256"]

        if verified is None or verified.of(path, read_through) != header["sha256"]:
            read_through(path)
    row = RowDigest.of_row(header["digest"])
    return TokenShard(
        tokens=tokens,
        offsets=offsets,
        text_bytes=header["text_bytes"],
        vocab_size=header["vocab_size"],
        digest=row.hex(),
        checksum=header["sha256"],
        row=row,
        documents=documents,
        path=path,
        stamp=_stamp(path),
    )


def _open_parts(
    path: Path,
    header: dict[str, Any],
    tokenizer: str | None,
    verified: DigestCache | None,
    verify: bool,
) -> Tokens:
    with path.open("rb") as file:
        file.seek(HEADER + 8 * (header["documents"] + 1))
        raw = file.read(header["parts"])
    try:
        parts = [(str(name), int(count), str(digest)) for name, count, digest in json.loads(raw)]
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"its list of parts can't be read ({error!r})") from error

    def open_part(name: str, count: int, digest: str) -> TokenShard:
        part = open_shard(
            path.parent.parent / name, tokenizer=tokenizer, verify=verify, verified=verified
        )
        if (len(part.tokens), part.checksum) != (count, digest):
            raise DataError(
                f"{part.path} is not the part that {path} was joined of; remove {path.parent} and "
                f"join the parts again"
            )
        return part

    opening = [partial(open_part, *part) for part in parts]
    if not parts:
        return np.zeros(0, header["dtype"])
    tokens = JoinedArray(opening, [count for _, count, _ in parts], f"<{header['dtype']}")
    if verify:
        tokens.open_all()
    return tokens


def write_joined(
    path: Path, parts: Sequence[TokenShard], *, above: Path, vocab_size: int, tokenizer: str
) -> None:
    """Write a shard whose documents are those of other shards, which stay where they are.

    above: the folder that holds the parts, and the folder in which the shard will lie.
    """
    writer = ShardWriter(path, vocab_size=vocab_size, tokenizer=tokenizer)
    where = []
    for part in parts:
        name = part.path.relative_to(above).as_posix()
        where.append([name, len(part.tokens), part.checksum])
        writer.take(part)
    writer.close(json.dumps(where).encode())


class ShardWriter:
    """Writes one shard, document by document; its parts are in order only after `close`."""

    def __init__(self, path: Path, *, vocab_size: int, tokenizer: str) -> None:
        self.path, self.vocab_size, self.tokenizer = path, vocab_size, tokenizer
        self.kind = "u2" if vocab_size <= 1 << 16 else "u4"
        self.tokens, self.documents, self.text_bytes, self.row = 0, 0, 0, RowDigest()
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = path.open("wb")
        self._file.write(b" " * HEADER)
        # Where documents end, on disk: there may be more of them than the memory holds numbers.
        self._ends: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115

    def add(self, ids: np.ndarray, lengths: list[int], text_bytes: int) -> None:
        """Append documents: their ids in a row, and the number of ids of each."""
        if ids.size and int(ids.max()) >= self.vocab_size:
            raise DataError(
                f"the tokenizer made id {int(ids.max())}, outside its own vocabulary of "
                f"{self.vocab_size}; its file is damaged"
            )
        raw = memoryview(ids.astype(f"<{self.kind}").tobytes())
        self._put(raw)
        width = int(self.kind[1])
        ends = np.cumsum(np.asarray(lengths, np.uint64), dtype=np.uint64)
        for length, end in zip(lengths, ends.tolist(), strict=True):
            self.row = self.row.add(raw[(end - length) * width : end * width])
        self._end(ends)
        self.text_bytes += text_bytes

    def take(self, part: TokenShard) -> None:
        """Append the documents of a part; its tokens stay where they are."""
        begun = np.uint64(self.tokens)
        for at in range(1, part.documents + 1, BLOCK):
            # Ends of a part count from its beginning; those of a block, from what came before it.
            self._end(part.offsets[at : at + BLOCK] + begun - np.uint64(self.tokens))
        self.row = self.row.join(part.row)
        self.text_bytes += part.text_bytes

    def close(self, parts: bytes = b"") -> None:
        """Write offsets, where the parts are, and header, and make the file durable."""
        if not parts:
            self._put(b"\0" * (_room(self.kind, self.tokens) - self.tokens * int(self.kind[1])))
        self._put(bytes(8))
        self._ends.seek(0)
        while block := self._ends.read(BLOCK):
            self._put(block)
        self._put(parts)
        header = {
            "dtype": self.kind,
            "tokens": self.tokens,
            "documents": self.documents,
            "vocab_size": self.vocab_size,
            "text_bytes": self.text_bytes,
            "tokenizer": self.tokenizer,
            "sha256": self._digest.hexdigest(),
            "digest": self.row.row(),
            "parts": len(parts),
        }
        self._file.seek(0)
        self._file.write((MAGIC + json.dumps(header).encode()).ljust(HEADER))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Close the file as it is; its folder is about to go."""
        self._file.close()
        self._ends.close()

    def _end(self, ends: np.ndarray) -> None:
        if len(ends):
            self._ends.write((ends + np.uint64(self.tokens)).astype("<u8").tobytes())
            self.tokens += int(ends[-1])
            self.documents += len(ends)

    def _put(self, raw: bytes | memoryview) -> None:
        self._digest.update(raw)
        self._file.write(raw)


def _room(kind: str, count: int) -> int:
    return -(-count * int(kind[1]) // 8) * 8


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _reopen(path: Path, digest: str) -> TokenShard:
    shard = open_shard(path, verify=False)
    if shard.digest != digest:
        raise DataError(f"{path} has changed while it was in use")
    return shard


def _map(path: Path, kind: str, offset: int, count: int) -> np.ndarray | RangedArray:
    if not count:  # nothing can't be mapped
        return np.zeros(0, kind)
    if isinstance(path, BucketPath):
        return RangedArray(path, kind, offset, count)
    return np.memmap(path, kind, "r", offset, (count,))


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if not raw.startswith(MAGIC) or len(raw) < HEADER:
        raise _damaged(path, "it does not begin as a token shard of this version does")
    try:
        header = json.loads(raw[len(MAGIC) :])
        sound = all(type(header[name]) is kind for name, kind in FIELDS.items())
        sound = sound and header["dtype"] in ("u2", "u4")
        numbers = ("tokens", "documents", "text_bytes", "parts")
        sound = sound and all(header[name] >= 0 for name in numbers)
        RowDigest.of_row(header["digest"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(path, f"its header can't be read ({error!r})") from error
    if not sound:
        raise _damaged(path, "its header holds a value of the wrong kind")
    return header


def _verify(path: Path, header: dict[str, Any], tokens: Tokens, offsets: np.ndarray) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER)
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != header["sha256"]:
        raise _damaged(path, "its content does not have the sha256 in its header")
    # The ids of a joined shard are looked at where its parts are.
    for start in () if header["parts"] else range(0, len(tokens), BLOCK):
        most = int(tokens[start : start + BLOCK].max())
        if most >= header["vocab_size"]:
            raise _damaged(path, f"id {most} is outside its vocabulary of {header['vocab_size']}")
    blocks = (offsets[at : at + BLOCK + 1] for at in range(0, len(offsets), BLOCK))
    ordered = all(bool((block[1:] >= block[:-1]).all()) for block in blocks)
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(tokens) or not ordered:
        raise _damaged(path, "the offsets of its documents are out of order")


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}; remove {path.parent} to write it anew")

"""The rows of a Parquet file as texts, or as records that are read whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxgen.data.record_values import sound_text
from jaxgen.data.records import advice
from jaxgen.data.sources import Source
from jaxgen.data.streams import Bad, Tally, blocks, is_packed
from jaxgen.errors import MissingPackageError, nearest


@runtime_checkable
class RecordReader(Protocol):
    """Reads a record as (JSON, where it stands)."""

    def read(self, record: Any, where: str) -> tuple[str, str]: ...


Keys = tuple[str, ...] | RecordReader


def read_parquet(
    source: Source, keys: Keys, tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    """Yield the texts of each row's columns `keys`, or what a `reading.Whole` reads of a row.

    Raises Bad for a file that is none, MissingPackageError without the extra.
    """
    path = source[0]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs the `pyarrow` package: pip install 'jaxgen[parquet]'"
        ) from error
    opened: Any = path
    if is_packed(path):
        opened = pyarrow.BufferReader(b"".join(blocks(path, tally)))
    else:
        tally.read += path.stat().st_size
        opened = path.open("rb")
    try:
        with pyarrow.parquet.ParquetFile(opened) as table:
            if not isinstance(keys, tuple):
                yield from _rows(table, keys, path, bad)
                return
            for key in keys:
                _check_column(table.schema_arrow, key, path)
            number = 0
            for batch in table.iter_batches(columns=list(keys), batch_size=1024):
                for values in zip(*(_column(batch, key) for key in keys), strict=True):
                    number += 1
                    where = f"{path}: row {number}"
                    try:
                        yield tuple(map(_of_cell, values, keys, [where] * len(keys)))
                    except Bad as error:
                        bad(error)
    except (pyarrow.ArrowException, OSError) as error:
        raise Bad("damaged", f"{path} is no whole Parquet file: {error}") from error


def _rows(table: Any, keys: RecordReader, path: Path, bad: Callable) -> Iterator[tuple[str, str]]:
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for record in batch.to_pylist():
            number += 1
            where = f"{path}: row {number}"
            try:
                yield keys.read(record, where)
            except Bad as error:
                bad(error)


def _check_column(schema: Any, key: str, path: Path) -> None:
    import pyarrow

    columns = dict(_columns(schema))
    if key not in columns:
        near = nearest(key, columns) or f"; it has {', '.join(map(repr, list(columns)[:8]))}"
        fix = advice(dict.fromkeys(columns, ""), key, str(path))
        raise Bad("no such field", f"{path} has no column {key!r}{near}", fix)
    held, kinds = columns[key], pyarrow.types
    held = held.value_type if kinds.is_dictionary(held) else held
    able = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    if not any(is_one(held) for is_one in able):
        raise Bad("not a string", f"{path}: column {key!r} holds {held}, not strings")


def _columns(fields: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and type of each column, those of structs as "outer.inner"."""
    import pyarrow

    for field in fields:
        if pyarrow.types.is_struct(field.type):
            inner = [field.type.field(i) for i in range(field.type.num_fields)]
            yield from _columns(inner, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}", field.type


def _column(batch: Any, key: str) -> Any:
    from pyarrow import compute

    if key in batch.schema.names:
        return batch.column(key)
    outer, *inner = key.split(".")
    # What lies in a missing struct is missing, which `StructArray.field` would not say.
    return compute.struct_field(batch.column(outer), inner)  # pyright: ignore


def _of_cell(value: Any, key: str, where: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise Bad(
            "not UTF-8", f"{where}: {key!r} is not UTF-8 at its byte {error.start}"
        ) from error
    if text is None:
        raise Bad("not a string", f"{where}: {key!r} is null, not a string")
    return sound_text(text, where)

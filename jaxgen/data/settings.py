"""Which text a run reads, and how it is split: the knobs of the `data` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgen.errors import ConfigError
from jaxgen.settings import option


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A corpus and its split; raises ConfigError naming the field at fault.

    One of `corpus` and `files` must be given; that is checked where the text is read, so that the
    defaults can be listed.
    """

    corpus: Literal["python-docs", "python-docstrings"] | None = option(
        "text that ships with every Python; null: `files`", None
    )
    files: tuple[str, ...] = option("globs of .txt, .jsonl and .parquet files, also .gz", ())
    field: str = option("key of the text in .jsonl and .parquet files", "text")
    split: Literal["hash", "tail"] = option(
        "hash: whole documents by their sha256; tail: the last of the text, for few documents",
        "hash",
    )
    valid_fraction: float = option("part of the text for validation", 0.05)
    test_fraction: float = option("part of the text that no training run looks at", 0.05)
    on_bad_record: Literal["stop", "skip"] = option(
        "a malformed file, line or row ends the run, or is skipped and counted", "stop"
    )
    workers: int = option("processes that make batches; 0: a thread of this one", 0)

    def __post_init__(self) -> None:
        if self.corpus and self.files:
            raise ConfigError(
                f"corpus={self.corpus} and files={list(self.files)} exclude each other; remove one"
            )
        if not all(pattern.strip() for pattern in self.files):
            raise ConfigError("files holds an empty glob; remove it")
        if not self.field:
            raise ConfigError("field='' names no key; write the key that holds the text")
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"valid_fraction={self.valid_fraction} + test_fraction={self.test_fraction} leave "
                f"nothing to train on; their sum must be less than 1"
            )
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers} must be 0 or more")

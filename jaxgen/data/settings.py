"""Which text a run reads, and how it is split: the knobs of the `data` section."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxgen import arguments
from jaxgen.data.augment.settings import AugmentSettings
from jaxgen.data.canaries import CanarySettings
from jaxgen.errors import ConfigError
from jaxgen.settings import option

Form = Literal["text", "pairs", "classes", "messages", "preferences", "feedback", "prompts"]
WHOLE = ("messages", "preferences", "feedback", "prompts")  # forms of records, read whole
FIELD = "text"
MESSAGES = "messages"  # the field of chats, unless another is named
FRACTION = 0.05
PLACES = ("file", "folder")  # whose a document may be, beside a field of its record
FEW = 20  # documents, of which a hash might leave a split none


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A corpus and its split; raises ConfigError naming the field at fault.

    One of `corpus` and `files` must be given; that is checked where the text is read, so that the
    defaults can be listed.
    """

    corpus: Literal["python-docs", "python-docstrings", "sums"] | None = option(
        "text that ships with every Python, or sums of two numbers; null: `files`", None
    )
    files: tuple[str, ...] = option(
        "globs of text files, .jsonl and .parquet, also .gz, and folders; {side} in a glob stands "
        "for each side",
        (),
    )
    valid_files: tuple[str, ...] = option("globs of the validation text; none: from `files`", ())
    test_files: tuple[str, ...] = option("globs of the test text; none: from `files`", ())
    sides: tuple[str, ...] = option(
        "source and target: names of parallel files, or fields of records; classes: text, label", ()
    )
    field: str = option(
        "key of the text in .jsonl and .parquet files; objective.name=chat: messages", FIELD
    )
    user: str | None = option(
        "whose a document is, for train.federated and train.privacy.unit=user: file, folder, or a "
        "field of the records; null: unknown",
        None,
    )
    split: Literal["auto", "hash", "tail"] = option(
        f"hash: whole documents by their sha256; tail: the last of the text; auto: tail for fewer "
        f"than {FEW} documents, or where a hash gives training or validation none",
        "auto",
    )
    valid_fraction: float | None = option(
        "part of the text for validation; null: 0.05, or nothing where there are valid_files", None
    )
    test_fraction: float | None = option(
        "part that no training run looks at; null: 0.05, or nothing where there are test_files",
        None,
    )
    on_bad_record: Literal["stop", "skip"] = option(
        "a malformed file, line or row ends the run, or is skipped and counted", "stop"
    )
    workers: int = option("processes that make batches; 0: a thread of this one", 0)
    augment: tuple[AugmentSettings, ...] = option(
        "objective.name=classes: changes of the training texts, in this order, as a list of kind "
        "(replace, insert, swap, delete, keyboard, ocr, pieces, counterfactual, variants, mixup, "
        "balance), rate, chance, file, similarity, alpha",
        (),
    )
    canaries: CanarySettings = dataclasses.field(default_factory=CanarySettings)

    def __post_init__(self) -> None:
        if self.corpus and self.files:
            raise ConfigError(
                f"corpus={self.corpus} and files={list(self.files)} exclude each other; remove one"
            )
        for name in ("files", "valid_files", "test_files"):
            if not all(pattern.strip() for pattern in getattr(self, name)):
                raise ConfigError(f"{name} holds an empty glob; remove it")
        if not self.field:
            raise ConfigError("field='' names no key; write the key that holds the text")
        if self.user == "":
            raise ConfigError("user='' names nobody; give file, folder or a field, or null")
        self._check_sides()
        self._check_split()
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers} must be 0 or more")

    def _check_sides(self) -> None:
        if not self.sides:
            return
        if len(set(self.sides)) != 2 or len(self.sides) != 2 or not all(self.sides):
            raise ConfigError(
                f"sides={list(self.sides)} must be two different names, such as [en, de]"
            )
        if self.corpus or self.field != FIELD:
            other = f"corpus={self.corpus}" if self.corpus else f"field={self.field!r}"
            raise ConfigError(
                f"sides={list(self.sides)} and {other} exclude each other; remove one"
            )

    def _check_split(self) -> None:
        for name in ("valid", "test"):
            part, given = getattr(self, f"{name}_fraction"), getattr(self, f"{name}_files")
            if part is not None and not 0 <= part < 1:
                raise ConfigError(f"{name}_fraction={part} must be in [0, 1)")
            if part is not None and given:
                raise ConfigError(
                    f"{name}_fraction={part} and {name}_files={list(given)} exclude each other; "
                    f"remove one"
                )
            if given and not self.files:
                raise ConfigError(f"{name}_files={list(given)} need files to train on; give files")
        valid, test = self.fractions
        if valid + test >= 1:
            raise ConfigError(
                f"valid_fraction={valid} + test_fraction={test} leave "
                f"nothing to train on; their sum must be less than 1"
            )

    @property
    def user_field(self) -> str | None:
        """The field of a record that says whose it is; None where none does."""
        return None if self.user in PLACES else self.user

    @property
    def fractions(self) -> tuple[float, float]:
        """The parts of `files` or `corpus` that validation and test take."""
        valid, test = (
            (0.0 if given else FRACTION) if part is None else part
            for part, given in (
                (self.valid_fraction, self.valid_files),
                (self.test_fraction, self.test_files),
            )
        )
        return valid, test

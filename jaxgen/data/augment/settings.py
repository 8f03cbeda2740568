"""Which changes a record's text gets in training: an entry of `data.augment`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jaxgen import arguments
from jaxgen.arguments import above, between
from jaxgen.errors import ConfigError
from jaxgen.settings import changed, option

Kind = Literal[
    "replace", "insert", "swap", "delete", "keyboard", "ocr", "pieces", "counterfactual",
    "variants", "mixup", "balance",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
NEAR = ("replace", "insert")  # kinds that look for near words
OF_WORDS = (*NEAR, "swap", "delete")
OF_TEXT = (*OF_WORDS, "keyboard", "ocr", "counterfactual")  # a text to a text, without a model
FILES = {"counterfactual": "pairs of words", "variants": "what `jaxgen augment --variants` wrote"}

HELP = (
    "replace, insert: near words; swap, delete: words; keyboard, ocr: letters; pieces: merges of a "
    "bpe tokenizer left out; counterfactual: the other of each pair of words in `file`; variants: "
    "a text that `jaxgen augment` wrote; mixup: vectors of two texts, mixed; balance: as many "
    "texts of each class"
)


@arguments.checked(
    rate=between(0, 1, above=True),
    chance=between(0, 1, above=True),
    similarity=between(-1, 1),
    alpha=above(0),
)
@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """One change of the texts of a class; raises ConfigError naming the field at fault."""

    kind: Kind = dataclasses.field(metadata={"help": HELP})
    rate: float = option("part of the words, letters or merges that change; at least one", 0.1)
    chance: float = option("part of the records that change, drawn anew each epoch", 0.5)
    file: Path | None = option(
        "counterfactual: two words a line; variants: a .jsonl; replace, insert: word vectors, or "
        "null: made of the training text",
        None,
    )
    similarity: float = option("replace, insert: least cosine of a word and a near one", 0.4)
    alpha: float = option("mixup: of the beta distribution of the shares", 0.2)

    def __post_init__(self) -> None:
        uses = {
            "rate": (*OF_WORDS, "keyboard", "ocr", "pieces"),
            "chance": (*OF_TEXT, "pieces", "variants"),
            "file": (*NEAR, *FILES),
            "similarity": NEAR,
            "alpha": ("mixup",),
        }
        for name in changed(self):
            if name in uses and self.kind not in uses[name]:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect with kind={self.kind}; remove it"
                )
        if self.kind in FILES and self.file is None:
            raise ConfigError(f"kind={self.kind} needs file: {FILES[self.kind]}")

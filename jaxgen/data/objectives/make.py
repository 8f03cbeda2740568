"""From the settings to the rows of a shard."""

from __future__ import annotations

from dataclasses import dataclass

from jaxgen.data.objectives.alphabet import Alphabet
from jaxgen.data.objectives.settings import ObjectiveSettings
from jaxgen.data.pairs import pair_rows
from jaxgen.data.rows import Maker, Rows, causal
from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError


def make(settings: ObjectiveSettings, alphabet: Alphabet) -> Maker:
    """Return the objective: a function from a shard to its rows.

    Raises ConfigError if the tokenizer lacks an id that the objective needs.
    """
    if settings.name == "causal":
        return causal
    return MAKERS[settings.name](settings, alphabet)


@dataclass(frozen=True, eq=False)
class _Pairs:
    settings: ObjectiveSettings
    alphabet: Alphabet

    def __call__(self, shard: TokenShard, *, context: int, seed: int, ordered: bool) -> Rows:
        known, wanted = self.alphabet, self.settings
        if known.eos is None or known.start is None:
            raise ConfigError(
                "the tokenizer declares no eos, which ends the target of a pair; take another "
                "tokenizer.kind, or name tokenizer.eos"
            )
        widths = (wanted.source or context, wanted.target or context)
        return pair_rows(
            shard, widths=widths, seed=seed, start=known.start, bos=known.bos, eos=known.eos
        )


MAKERS = {"pairs": _Pairs}

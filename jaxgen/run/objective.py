"""The objective of a run: what its settings make of its tokenizer."""

from __future__ import annotations

from jaxgen.data.objectives.alphabet import Alphabet
from jaxgen.data.objectives.settings import ObjectiveSettings
from jaxgen.errors import ConfigError
from jaxgen.tokens.protocol import Tokenizer


def alphabet(settings: ObjectiveSettings, tokenizer: Tokenizer) -> Alphabet:
    """Return the ids that the objective works with."""
    special = tokenizer.special
    return Alphabet(
        size=tokenizer.vocab_size, bos=special.bos, eos=special.eos, start=settings.start
    )


def rows_needed(settings: ObjectiveSettings, tokenizer: Tokenizer) -> int:
    """Return how many ids a model must know: the tokenizer's, and those that it lacks."""
    return tokenizer.vocab_size


def start_of(tokenizer: Tokenizer) -> int:
    """Return the id that a decoder begins with; ConfigError if no id of the tokenizer would do."""
    special = tokenizer.special
    for token in (special.bos, special.pad, special.eos):
        if token is not None:
            return token
    raise ConfigError("the tokenizer has neither bos, pad nor eos; give objective.start")

"""The objective of a run: what its settings make of its tokenizer."""

from __future__ import annotations

from jaxgen.data.augment.rows import Augmented
from jaxgen.data.augment.settings import AugmentSettings
from jaxgen.data.objectives.alphabet import Alphabet
from jaxgen.data.objectives.make import make_objective
from jaxgen.data.objectives.settings import ObjectiveSettings
from jaxgen.data.rows import Maker
from jaxgen.errors import ConfigError
from jaxgen.tokens import marks
from jaxgen.tokens.protocol import Tokenizer


def make(
    settings: ObjectiveSettings,
    tokenizer: Tokenizer,
    topology: str,
    augment: tuple[AugmentSettings, ...] = (),
) -> Maker:
    """Return what makes rows of token shards; ConfigError if the tokenizer does not allow it.

    augment: changes of the training texts.
    """
    if augment:
        return Augmented(augment, tokenizer)
    if settings.name == "pairs" and hasattr(tokenizer, "encode_target"):
        raise ConfigError(
            "a Marian tokenizer has a model for each side, which objective.name=pairs does not "
            "tell apart yet; train with a tokenizer of your own"
        )
    return make_objective(settings, alphabet(settings, tokenizer), topology)


def alphabet(settings: ObjectiveSettings, tokenizer: Tokenizer) -> Alphabet:
    """Return the ids that the objective works with."""
    special, name = tokenizer.special, settings.name
    return Alphabet(
        size=tokenizer.vocab_size,
        bos=special.bos,
        eos=special.eos,
        start=settings.start,
        mask=marks.mask_of(tokenizer) if name in ("masked", "denoise") else None,
        sentinels=marks.sentinels_of(tokenizer) if name == "spans" else (),
        words=marks.begins_word(tokenizer) if settings.unit == "words" else None,
        ends=marks.ends_sentence(tokenizer) if name == "denoise" else None,
    )


def rows_needed(settings: ObjectiveSettings, tokenizer: Tokenizer) -> int:
    """Return how many ids a model must know: the tokenizer's, and those that it lacks."""
    special = (
        alphabet(settings, tokenizer) if settings.name in ("masked", "denoise", "spans") else None
    )
    extra = [] if special is None else [special.mask or 0, *special.sentinels]
    return max([tokenizer.vocab_size, *(token + 1 for token in extra)])


def start_of(tokenizer: Tokenizer) -> int:
    """Return the id that a decoder begins with; ConfigError if no id of the tokenizer would do."""
    special = tokenizer.special
    for token in (special.bos, special.pad, special.eos):
        if token is not None:
            return token
    raise ConfigError("the tokenizer has neither bos, pad nor eos; give objective.start")

"""Other wordings of texts by our own models: masked words, paraphrases, translations and back."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jaxgen.data.augment.words import WORD, cased, split
from jaxgen.errors import ConfigError
from jaxgen.text.batches import Progress
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.text.tasks.scoring import fill_mask
from jaxgen.text.tasks.seq2seq import rewrites

MASK = "<mask>"
BEST = 10  # words that one is drawn from


def masked_variants(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    copies: int,
    rate: float,
    seed: int,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[list[str]]:
    """Return `copies` of each text, a part of whose words a masked model has drawn anew.

    Words are masked all at once, and each drawn by its probability of the BEST whole words that
    are another; a text without words, or with a mask of its own, has none (Kobayashi 2018).

    Args:
        model: an encoder with logits of tokens.
        texts: of at least a word.
        rate: part of the words, at least one, in (0, 1].
        seed: of what is masked and drawn.
    """
    masked, drawings = [], []
    for number, text in enumerate(texts):
        pieces = split(text)
        words = range(1, len(pieces), 2)
        for copy in range(copies if words and MASK not in text else 0):
            chance = random.Random(f"{seed} {number} {copy}")  # noqa: S311 - no secret
            order = sorted(words, key=lambda _, chance=chance: chance.random())
            chosen = sorted(order[: max(round(rate * len(order)), 1)])
            hidden = [MASK if n in chosen else piece for n, piece in enumerate(pieces)]
            masked.append("".join(hidden))
            drawings.append((number, pieces, chosen, chance))
    filled = fill_mask(model, masked, mask=MASK, best=BEST, batch=batch, progress=progress)
    results: list[list[str]] = [[] for _ in texts]
    for (number, pieces, chosen, chance), row in zip(drawings, filled, strict=True):
        new = list(pieces)
        for place, options in zip(chosen, row, strict=True):
            new[place] = _drawn(pieces[place], options, chance)
        results[number].append("".join(new))
    return results


def _drawn(word: str, options: Sequence[tuple[str, float]], chance: random.Random) -> str:
    """Return a word of the options, by their probabilities; the word itself where none will do."""
    words = [
        (piece.strip(), weight)
        for piece, weight in options
        if WORD.fullmatch(piece.strip()) and piece.strip().lower() != word.lower()
    ]
    left = chance.random() * sum(weight for _, weight in words)
    for other, weight in words:
        left -= weight
        if left <= 0:
            return cased(other, word) if other.islower() else other
    return word


def rewritten_variants(
    models: Sequence[LoadedModel],
    texts: Sequence[str],
    *,
    copies: int,
    seed: int,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[list[str]]:
    """Return `copies` of each text as models rewrite it one after another, each drawn anew.

    Args:
        models: one that paraphrases; or one that translates, and one that translates back.
        texts: what the first reads.
        seed: of what is drawn, at temperature 0.8 from the likeliest 0.9.
    """
    if not models:
        raise ConfigError("models=() rewrite nothing; give one, or two that translate and back")
    results: list[list[str]] = [[] for _ in texts]
    for copy in range(copies):
        rows = list(texts)
        for number, model in enumerate(models):
            own_seed = seed + copy * len(models) + number
            how = Generation(temperature=0.8, top_p=0.9, seed=own_seed)
            outputs = rewrites(model, rows, how, batch=batch, progress=progress)
            rows = [output[0].text for output in outputs]
        for row, text in zip(results, rows, strict=True):
            row.append(text)
    return results

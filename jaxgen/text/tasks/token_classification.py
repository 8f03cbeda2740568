"""Named entities: the parts of a text whose tokens have a class that says something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgen.text import reading_programs
from jaxgen.text.batches import Progress, by_length
from jaxgen.text.loaded_model import LoadedModel, Overflow, encode_texts, require, require_start
from jaxgen.tokens.pair import TokenSpan, locate

Aggregation = Literal["none", "simple", "first", "average", "max"]
OUTSIDE = "O"  # the class of tokens that belong to nothing


class Entity(NamedTuple):
    """A part of a text with its label; begin, end: its characters; score: its probability."""

    label: str
    score: float
    text: str
    begin: int
    end: int


def classify_tokens(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    aggregation: Aggregation = "simple",
    batch: int = 32,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> list[list[Entity]]:
    """Return the entities of each text in its order, as transformers' pipeline finds them.

    Args:
      model: one with a head of token classes, such as BertForTokenClassification.
      texts: each read by itself.
      aggregation: what an entity is. none: a token. simple: neighbours whose labels agree but for
        "B-" and "I-", of which "B-" begins another. first, average, max: the same of whole words,
        which take the class of their first token, of the mean of their tokens' probabilities, or
        of the token that is surest.
      batch: texts at once.
      overflow: whether a text longer than the context is refused or cut.
      progress: called with (texts done, texts in all).

    Returns:
      Entities without those labelled "O"; the score of several tokens is the mean of theirs.

    Raises:
      ConfigError: for a model without such a head, or a text that is empty or too long.
    """
    require(model, "classify_tokens", head=("token_classes",))
    require_start(model, "classify_tokens")
    names = model.labels or tuple(f"LABEL_{i}" for i in range(model.config.classes or 0))
    results: list[list[Entity]] = [[] for _ in texts]
    rows, before = encode_texts(model, texts, overflow), len(model.around[0])
    for numbers, tokens, segments in by_length(rows, batch, model.config.longest, progress):
        probs = np.asarray(
            reading_programs.token_probabilities(
                model.params, model.config, tokens, segments, model.start
            )
        )
        for row, number in enumerate(numbers):
            spans = locate(model.tokenizer, texts[number])
            count = min(len(spans), len(rows[number]) - before - len(model.around[1]))
            inner = probs[row, before : before + count]
            results[number] = _entities(texts[number], spans[:count], inner, names, aggregation)
    return results


def _entities(
    text: str,
    spans: Sequence[TokenSpan],
    probs: Float[np.ndarray, "T C"],
    names: Sequence[str],
    aggregation: Aggregation,
) -> list[Entity]:
    """Return the entities of one text, from the probabilities of its tokens."""
    by_word = aggregation in ("first", "average", "max")
    parts: list[Entity] = []
    for word in _words(spans, by_word):
        scores = _score(probs[word], aggregation)
        best = int(scores.argmax())
        begin, end = spans[word.start].begin, spans[word.stop - 1].end
        parts.append(Entity(names[best], float(scores[best]), text[begin:end], begin, end))
    if aggregation != "none":
        parts = [_merge(text, group) for group in _neighbours(parts)]
    return [one for one in parts if one.label != OUTSIDE]


def _words(spans: Sequence[TokenSpan], by_word: bool) -> Iterator[slice]:
    """Yield the tokens of each word, or else each token."""
    starts = [i for i, span in enumerate(spans) if not (by_word and i and span.continues)]
    for begin, end in zip(starts, [*starts[1:], len(spans)], strict=True):
        yield slice(begin, end)


def _score(probs: Float[np.ndarray, "T C"], aggregation: Aggregation) -> Float[np.ndarray, "C"]:
    if aggregation == "average":
        return probs.mean(axis=0)
    return probs[probs.max(axis=1).argmax() if aggregation == "max" else 0]


def _neighbours(parts: Sequence[Entity]) -> Iterator[list[Entity]]:
    """Yield neighbours whose labels agree but for "B-" and "I-", of which "B-" begins another."""
    group: list[Entity] = []
    for part in parts:
        if group and (part.label.startswith("B-") or _kind(part) != _kind(group[-1])):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _kind(part: Entity) -> str:
    return part.label[2:] if part.label.startswith(("B-", "I-")) else part.label


def _merge(text: str, group: Sequence[Entity]) -> Entity:
    begin, end = group[0].begin, group[-1].end
    label = group[0].label.split("-", 1)[-1]
    score = float(np.mean([part.score for part in group]))
    return Entity(label, score, text[begin:end], begin, end)

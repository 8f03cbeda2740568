"""Answers to questions about texts: found in the text, or written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.text.tasks.model import SHORTEST, Model, Overflow, Progress, wants
from jaxgen.text.tasks.rewriting import rewrite
from jaxgen.text.tasks.writing import write
from jaxgen.tokens.pair import Pair, pairs

FORMS = {
    "encoder_decoder": "question: {question} context: {context}",  # T5's
    "decoder": "{context}\n\nQuestion: {question}\nAnswer:",
}

Empty = Literal["refused", "allowed"]


class Answer(NamedTuple):
    """An answer; begin, end: its characters in the text, None where it was written.

    score: its probability among all spans of the text and, if empty answers are allowed, none.
    """

    text: str
    score: float | None
    begin: int | None
    end: int | None


def answer(
    model: Model,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    best: int = 1,
    empty: Empty = "refused",
    longest: int = 15,
    width: int | None = None,
    overlap: int | None = None,
    form: str | None = None,
    length: int | None = None,
    batch: int = 16,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> list[list[Answer]]:
    """Return up to `best` answers to each question about the context beside it, the best first.

    A model with a head of spans finds them in the context, as SQuAD's and transformers' pipeline
    do: at most `longest` tokens; contexts are read in windows of `width` tokens (question and
    marks among them; None: the model's context, at most 384) that share `overlap` (None: a third);
    empty "allowed" lets no answer at all be the best, with an empty text. Other models write one
    answer from `form`, a text with {question} and {context}, of `length` new tokens at most.
    Raises ConfigError for sides of different numbers, an empty text, or a model that does neither.
    """
    if len(questions) != len(contexts):
        raise ConfigError(f"{len(questions)} questions but {len(contexts)} contexts; give one each")
    for name, texts in (("question", questions), ("context", contexts)):
        if not all(texts):
            raise ConfigError(f"{name} {list(texts).index('')} is empty; remove it")
    if best < 1 or longest < 1:
        raise ConfigError(f"best={best} and longest={longest} must be at least 1")
    if model.config.head != "spans":
        return _written(model, questions, contexts, form, length, batch, overflow, progress)
    wants(model, "answer", topology=("encoder", "decoder"))
    if form is not None or length is not None:
        raise ConfigError("form= and length= are for models that write; this one finds spans")
    most = min(model.config.context, width or 384)
    shared = most // 3 if overlap is None else overlap
    rows = [
        pairs(model.tokenizer, question, context, width=most, stride=shared)
        for question, context in zip(questions, contexts, strict=True)
    ]
    flat = [(number, pair) for number, parts in enumerate(rows) for pair in parts]
    found: list[list[Answer]] = [[] for _ in questions]
    null = [1.0] * len(questions)
    for numbers, parts, logits in _batches(model, flat, batch, most, progress):
        for number, pair, scores in zip(numbers, parts, logits, strict=True):
            allowed = np.asarray([span is not None for span in pair.spans])
            none, spans = spans_of(scores[: len(pair.ids)], allowed, best, longest)
            null[number] = min(null[number], none)
            found[number] += [_answer(contexts[number], pair, *span) for span in spans]
    if empty == "allowed":
        found = [[*kept, Answer("", none, 0, 0)] for kept, none in zip(found, null, strict=True)]
    return [sorted(kept, key=lambda a: -(a.score or 0.0))[:best] for kept in found]


def spans_of(
    logits: Float[np.ndarray, "T 2"], allowed: Bool[np.ndarray, "T"], best: int, longest: int
) -> tuple[float, list[tuple[int, int, float]]]:
    """Return (probability of no answer, the best (first token, last token, probability)s).

    Begin and end are two softmaxes over the allowed tokens and the first one, whose share is that
    of no answer (Devlin et al. 2018; the pipeline of transformers 4).
    """
    kept = allowed.copy()
    kept[0] = True
    raised = np.where(kept[:, None], logits.astype(np.float64), -1e4)
    chances = np.exp(raised - raised.max(axis=0))
    chances /= chances.sum(axis=0)
    none = float(chances[0, 0] * chances[0, 1])
    chances[0] = 0.0
    both = np.tril(np.triu(np.outer(chances[:, 0], chances[:, 1])), longest - 1)
    both[~allowed] = 0.0
    both[:, ~allowed] = 0.0
    order = np.argsort(-both, axis=None, kind="stable")[:best]
    places = np.stack(np.unravel_index(order, both.shape), axis=1).tolist()
    return none, [(i, j, float(both[i, j])) for i, j in places if both[i, j] > 0]


def _answer(context: str, pair: Pair, first: int, last: int, score: float) -> Answer:
    begin, end = pair.spans[first], pair.spans[last]
    assert begin is not None and end is not None
    return Answer(context[begin[0] : end[1]], score, begin[0], end[1])


def _batches(model, flat: list[tuple[int, Pair]], batch: int, most: int, progress):
    """Yield (numbers of the questions, pairs, logits [B, T, 2]), long rows together."""
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1")
    flat = sorted(flat, key=lambda row: len(row[1].ids))
    for begin in range(0, len(flat), batch):
        part = flat[begin : begin + batch]
        size = SHORTEST
        while size < len(part[-1][1].ids):
            size *= 2
        tokens = np.zeros((batch, min(size, most)), np.int32)
        types, segments = np.zeros_like(tokens), np.zeros_like(tokens)
        for place, (_, pair) in enumerate(part):
            tokens[place, : len(pair.ids)] = pair.ids
            types[place, : len(pair.ids)] = pair.types
            segments[place, : len(pair.ids)] = 1
        known = model.config.token_types
        types = np.minimum(types, known - 1) if known else None
        logits = np.asarray(_spans(model.params, model.config, tokens, segments, types))
        yield [number for number, _ in part], [pair for _, pair in part], logits[: len(part)]
        if progress:
            progress(begin + len(part), len(flat))


def _written(
    model: Model, questions, contexts, form, length, batch, overflow: Overflow, progress
) -> list[list[Answer]]:
    wants(model, "answer", head=("lm",), topology=tuple(FORMS))
    form = form or FORMS[model.config.topology]
    if "{question}" not in form:
        raise ConfigError(f"form={form[:60]!r} has no {{question}}; write it where it belongs")
    texts = [
        form.replace("{context}", context).replace("{question}", question)
        for question, context in zip(questions, contexts, strict=True)
    ]
    if model.config.topology == "encoder_decoder":
        found = rewrite(
            model, texts, length=length, batch=batch, overflow=overflow, progress=progress
        )
    else:
        before, _ = model.around
        rows = [[*before, *model.tokenizer.encode(text)] for text in texts]
        found = write(model, rows, length=length, temperature=0.0, batch=batch, progress=progress)
        # A decoder goes on with the next question: the answer is its first line.
        found = [text.strip().split("\n")[0].strip() for text in found]
    return [[Answer(text.strip(), None, None, None)] for text in found]


@partial(jax.jit, static_argnames="config")
def _spans(params, config: ModelConfig, tokens, segments, types):
    logits = api.apply(params, config, tokens, segments=segments, types=types).logits
    assert logits is not None
    return logits.astype(jnp.float32)

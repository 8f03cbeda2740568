"""Question answering: spans of a context, or generated answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import reading_programs
from jaxgen.text.batches import Progress, by_length, pad
from jaxgen.text.defaults import settle
from jaxgen.text.loaded_model import LoadedModel, require
from jaxgen.text.request import Generation
from jaxgen.text.session import number_prompts, session_of
from jaxgen.text.tasks.seq2seq import rewrites
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
    model: LoadedModel,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    best: int = 1,
    empty: Empty = "refused",
    longest: int = 15,
    width: int | None = None,
    overlap: int | None = None,
    form: str | None = None,
    settings: Generation | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[list[Answer]]:
    """Return up to `best` answers to each question about the context beside it, the best first.

    A model with a head of spans finds them in the context, as SQuAD's and transformers' pipeline
    do: at most `longest` tokens; contexts are read in windows of `width` tokens (question and
    marks among them; None: the model's context, at most 384) that share `overlap` (None: a third);
    empty "allowed" lets no answer at all be the best, with an empty text. Other models write one
    answer (or as many as `settings` asks for) from `form`, a text with {question} and {context}.
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
        return _generate_answers(model, questions, contexts, form, settings, batch, progress)
    require(model, "answer", topology=("encoder", "decoder"))
    names = [] if settings is None else [n for n in vars(settings) if settings.gives(n)]
    if form is not None or names:
        name = "form=" if settings is None or not names else settings.describe(names[0])
        raise ConfigError(f"{name} is for models that write; this one finds spans in the text")
    most = min(model.config.context, width or 384)
    shared = most // 3 if overlap is None else overlap
    rows = [
        pairs(model.tokenizer, question, context, width=most, stride=shared)
        for question, context in zip(questions, contexts, strict=True)
    ]
    flat = [(number, pair) for number, parts in enumerate(rows) for pair in parts]
    answers: list[list[Answer]] = [[] for _ in questions]
    null = [1.0] * len(questions)
    for numbers, parts, logits in _batches(model, flat, batch, most, progress):
        for number, pair, scores in zip(numbers, parts, logits, strict=True):
            allowed = np.asarray([span is not None for span in pair.spans])
            none, spans = spans_of(scores[: len(pair.ids)], allowed, best, longest)
            null[number] = min(null[number], none)
            answers[number] += [_answer(contexts[number], pair, *span) for span in spans]
    if empty == "allowed":
        answers = [[*row, Answer("", none, 0, 0)] for row, none in zip(answers, null, strict=True)]
    return [sorted(row, key=lambda a: -(a.score or 0.0))[:best] for row in answers]


def spans_of(
    logits: Float[np.ndarray, "T 2"], allowed: Bool[np.ndarray, "T"], best: int, longest: int
) -> tuple[float, list[tuple[int, int, float]]]:
    """Return (probability of no answer, the best (first token, last token, probability)s).

    Begin and end are two softmaxes over the allowed tokens and the first one, whose share is that
    of no answer (Devlin et al. 2018; the pipeline of transformers 4).
    """
    candidates = allowed.copy()
    candidates[0] = True
    raised = np.where(candidates[:, None], logits.astype(np.float64), -1e4)
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


def _batches(model: LoadedModel, flat: list[tuple[int, Pair]], batch: int, most: int, progress):
    """Yield (numbers of the questions, pairs, logits [B, T, 2]), long rows together."""
    num_types = model.config.embed.types
    for places, tokens, segments in by_length([p.ids for _, p in flat], batch, most, progress):
        part = [flat[i] for i in places]
        shape = {"width": tokens.shape[1], "size": batch}
        types = None
        if num_types:
            types = np.minimum(pad([p.types for _, p in part], **shape)[0], num_types - 1)
        logits = reading_programs.span_logits(model.params, model.config, tokens, segments, types)
        yield [number for number, _ in part], [p for _, p in part], np.asarray(logits)[: len(part)]


def _generate_answers(
    model: LoadedModel, questions, contexts, form, settings, batch, progress
) -> list[list[Answer]]:
    require(model, "answer", head=("lm",), topology=tuple(FORMS))
    form = form or FORMS[model.config.topology]
    if "{question}" not in form:
        raise ConfigError(f"form={form[:60]!r} has no {{question}}; write it where it belongs")
    texts = [
        form.replace("{context}", context).replace("{question}", question)
        for question, context in zip(questions, contexts, strict=True)
    ]
    settings, how = settings or Generation(), {"batch": batch, "progress": progress}
    if model.config.topology == "encoder_decoder":
        completions = rewrites(model, texts, settings, prefix="", **how)
        rows = [[one.text.strip() for one in row] for row in completions]
    else:
        session = session_of(model)
        settings = settle(settings, GenerationConfig(), {"temperature": 0.0})
        prompts = number_prompts([tuple(session.ids(text)) for text in texts], settings)
        # A decoder goes on with the next question: the answer is its first line.
        rows = [[one.text.strip().split("\n")[0].strip() for one in row]
                 for row in session.run(prompts, **how)]  # fmt: skip
    return [[Answer(text, None, None, None) for text in row] for row in rows]

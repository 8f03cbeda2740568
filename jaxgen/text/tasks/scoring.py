"""Classification, embeddings, scores and masked words of texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxgen.errors import ConfigError
from jaxgen.pretrained.pooling import read_pooling
from jaxgen.text import reading_programs
from jaxgen.text.batches import Progress, by_length, pad
from jaxgen.text.loaded_model import (
    LoadedModel,
    Overflow,
    check_list,
    encode_texts,
    require,
    require_start,
)
from jaxgen.tokens.marks import MASKS, mask_of, text_or_name
from jaxgen.tokens.pair import pairs


def classify(
    model: LoadedModel,
    texts: Sequence[str | tuple[str, str]],
    *,
    batch: int = 32,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> list[list[tuple[str, float]]]:
    """Return (label, probability) of each class for each text, or pair of texts, likeliest first.

    Softmax, sigmoid, or unbounded numbers (regression), by problem_type of the folder. Raises
    ConfigError for a model without a head of classes, or an encoder-decoder without start id.
    """
    if model.config.head == "token_classes":
        raise ConfigError("this model has a class for each token: classify_tokens finds them")
    require(model, "classify", head=("classes",))
    check_list(texts)
    names = model.labels or tuple(str(i) for i in range(model.config.classes or 0))
    results: list[list[tuple[str, float]]] = [[] for _ in texts]
    require_start(model, "classify")
    rows, types = _rows(model, texts, overflow)
    num_types = model.config.embed.types
    problem = model.generation_config.problem_type
    for numbers, tokens, segments in by_length(rows, batch, model.config.longest, progress):
        kinds = None
        if num_types and types is not None:
            kinds, _ = pad([types[i] for i in numbers], width=tokens.shape[1], size=batch)
            kinds = np.minimum(kinds, num_types - 1)
        probs = np.asarray(
            reading_programs.class_scores(
                model.params, model.config, tokens, segments, kinds, model.start, problem
            )
        )
        for row, number in enumerate(numbers):
            order = np.argsort(-probs[row], kind="stable")
            results[number] = [(names[i], float(probs[row, i])) for i in order]
    return results


def _rows(
    model: LoadedModel, texts: Sequence[str | tuple[str, str]], overflow: Overflow
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Return (ids of each row, types of their tokens, or None without any pair)."""
    single = [text for text in texts if isinstance(text, str)]
    if len(single) == len(texts):
        return encode_texts(model, single, overflow), None
    most, rows, types, cut = model.config.longest, [], [], 0
    for number, text in enumerate(texts):
        if isinstance(text, str):
            rows += encode_texts(model, [text], overflow)
            types.append([0] * len(rows[-1]))
            continue
        windows = pairs(model.tokenizer, *text, width=most, stride=0)
        if len(windows) > 1 and overflow == "refuse":
            raise ConfigError(
                f"pair {number} has more tokens than context={most}; shorten it, or cut the second "
                f"text of such pairs with overflow='cut' (--overflow cut)"
            )
        cut += len(windows) > 1
        rows.append(windows[0].ids)
        types.append(windows[0].types)
    if cut:
        warnings.warn(f"{cut} of {len(texts)} pairs were cut to {most} tokens", stacklevel=3)
    return rows, types


def embed(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    prompt_name: str | None = None,
    batch: int = 32,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> Float[np.ndarray, "N D"]:
    """Return a vector of each text: the mean of its last hidden states (of an encoder's, if any).

    modules.json of a sentence-transformers folder changes pooling, length and what follows.
    prompt_name: which prompt of such a folder is put before each text, such as query or document;
    None: its default one, if it names one. Raises CheckpointError for an unknown module in it,
    ConfigError for a name without a prompt.
    """
    check_list(texts)
    pooling = read_pooling(model.home)
    embeddings = np.zeros((len(texts), len(pooling.modes) * model.config.memory_width), np.float32)
    if not all(texts):
        raise ConfigError(f"text {list(texts).index('')} is empty; remove it")
    case = str.lower if pooling.lower else str
    prompt = case(pooling.prompt(prompt_name))
    skip = 0 if pooling.pools_prompt or not prompt else _before_text(model, prompt)
    rows = encode_texts(model, [prompt + case(t) for t in texts], overflow, longest=pooling.longest)
    for numbers, tokens, segments in by_length(rows, batch, model.config.longest, progress):
        vectors = reading_programs.pooled_states(
            model.params, model.config, pooling.modes, tokens, segments, skip
        )
        embeddings[numbers] = np.asarray(vectors)[: len(numbers)]
    for step in pooling.after:
        embeddings = step(embeddings)
    return embeddings


def _before_text(model: LoadedModel, prompt: str) -> int:
    """Return the tokens of a prompt, with what begins a text, without what ends it."""
    return len(model.ids(prompt)) - bool(model.around[1])


def score(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    batch: int = 32,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Return (sum of log-probabilities in nats, tokens) of each text, by a decoder.

    The first token is given, not scored, unless the tokenizer has a bos to begin with.
    """
    require(model, "score", topology=("decoder",), head=("lm",))
    results = [(0.0, 0)] * len(texts)
    rows = encode_texts(model, texts, overflow)
    for numbers, tokens, segments in by_length(rows, batch, model.config.longest, progress):
        read, targets, real = tokens[:, :-1], tokens[:, 1:], segments[:, 1:]
        logp, _ = reading_programs.target_log_probabilities(
            model.params, model.config, read, segments[:, :-1], targets
        )
        sums = np.where(real > 0, np.asarray(logp), 0).sum(axis=1)
        for row, number in enumerate(numbers):
            results[number] = float(sums[row]), int(real[row].sum())
    return results


def score_pairs(
    model: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Return (sum of log-probabilities in nats, tokens) of each continuation after its context.

    As lm-evaluation-harness does: blanks at a context's end are of the continuation, and a
    continuation without a context is after bos, or else after eos. Raises ConfigError for a model
    that is no decoder, or a pair that is empty or too long.
    """
    require(model, "score", topology=("decoder",), head=("lm",))
    rows = [_pair(model, *pair) for pair in pairs]
    results = score_continuations(model, rows, batch=batch, progress=progress)
    return [(logp, len(after)) for (logp, _), (_, after) in zip(results, rows, strict=True)]


def _pair(model: LoadedModel, context: str, continuation: str) -> tuple[list[int], list[int]]:
    tokenizer, special = model.tokenizer, model.tokenizer.special
    begin = special.eos if special.bos is None else special.bos
    bos = [] if special.bos is None else [special.bos]
    if context:
        text = context.rstrip()
        whole = [*bos, *tokenizer.encode(context + continuation)]
        before = [*bos, *tokenizer.encode(text)]
        before, after = whole[: len(before)], whole[len(before) :]
    else:
        if begin is None:
            raise ConfigError("the tokenizer has neither bos nor eos to stand before a text")
        before, after = [begin], tokenizer.encode(continuation)
    if not after or len(after) > model.config.longest:
        raise ConfigError(
            f"continuation {continuation[:40]!r} has {len(after)} tokens; it must have 1 to "
            f"context={model.config.longest}"
        )
    return before, after


def score_continuations(
    model: LoadedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch: int,
    progress: Progress | None = None,
) -> list[tuple[float, bool]]:
    """Return (log p in nats, whether all are the likeliest) of ids after those before them.

    What is longer than the context loses its beginning.
    """
    width = model.config.context
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    read = [[*before, *after][-(width + 1) :] for before, after in rows]
    inputs = [row[:-1] for row in read]
    for numbers, tokens, segments in by_length(inputs, batch, width, progress):
        targets = np.zeros_like(tokens)
        for i, number in enumerate(numbers):
            targets[i, : len(inputs[number])] = read[number][1:]
        parts = (model.params, model.config, tokens, segments, targets)
        logp, hits = map(np.asarray, reading_programs.target_log_probabilities(*parts))
        for i, number in enumerate(numbers):
            end = len(inputs[number])
            part = slice(end - min(len(rows[number][1]), end), end)
            sure = bool(hits[i, part].all())
            answers[number] = float(logp[i, part].astype(np.float64).sum()), sure
    return answers


def fill_mask(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    mask: str = "<mask>",
    best: int = 5,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[list[list[tuple[str, float]]]]:
    """Return, for each text and each `mask` in it, the likeliest (piece, probability)s.

    A piece is its text, or its own name, as "[SEP]", if it stands for none.

    Raises ConfigError for a model that is no encoder with token logits, or a text without mask.
    """
    require(model, "fill-mask", topology=("encoder",), head=("mlm", "lm"))
    hidden, rows = mask_of(model.tokenizer), []
    for text in texts:
        parts = text.split(mask)
        if len(parts) < 2:
            raise ConfigError(f"text {text[:40]!r} has no {mask}; write it where a word is missing")
        before, after = model.around
        rows.append([*before, *_hidden(model, parts, hidden), *after])
        _check_room(model, rows[-1], text)
    results: list[list[list[tuple[str, float]]]] = [[] for _ in texts]
    for numbers, tokens, segments in by_length(rows, batch, model.config.longest, progress):
        probs = np.asarray(
            reading_programs.token_probabilities(model.params, model.config, tokens, segments)
        )
        for row, number in enumerate(numbers):
            for at in np.flatnonzero(tokens[row] == hidden):
                order = np.argsort(-probs[row, at, : model.tokenizer.vocab_size])[:best]
                chances = [float(probs[row, at, i]) for i in order]
                names = [text_or_name(model.tokenizer, int(i)) for i in order]
                results[number].append(list(zip(names, chances, strict=True)))
    return results


def _hidden(model: LoadedModel, parts: Sequence[str], hidden: int) -> list[int]:
    """Return the ids of the parts with the mask between them."""
    marked = getattr(model.tokenizer, "encode_marked", None)
    own = next((m for m in MASKS if m in getattr(model.tokenizer, "vocabulary", dict)()), None)
    if marked is not None and own is not None:
        # The mask may take the space before it, as RoBERTa's does.
        return marked(own.join(parts))
    ids = [model.tokenizer.encode(part) if part else [] for part in parts]
    return [i for n, part in enumerate(ids) for i in (*([hidden] if n else []), *part)]


def _check_room(model: LoadedModel, row: list[int], text: str) -> None:
    if len(row) > model.config.longest:
        raise ConfigError(
            f"text {text[:40]!r} has {len(row)} tokens, more than context={model.config.context}"
        )

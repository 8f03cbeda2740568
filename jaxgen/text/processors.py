"""Logits processors from settings: one chain for a batch of different requests.

A processor is in the chain if any request sets it; the other requests get its neutral value. Values
are data, so only another set of processors compiles anew. Order as in transformers' `generate`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.decoding.beam import constraints
from jaxgen.decoding.chain import Chain, chain
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.processors import bias, forcing, repetition, structure, truncation, watermark
from jaxgen.errors import ConfigError
from jaxgen.safety.policy import read_policy
from jaxgen.text.request import DRAWING, Generation
from jaxgen.tokens import Tokenizer

NEVER = 2**30  # a place that no text reaches
ALL = 2**30  # more tokens than any vocabulary has


class ChainContext(NamedTuple):
    """Arrays of the requests that processors need besides settings.

    stops: [B, E] ids that end each, padded; limits: [B] new tokens at most; sources: [B, S] ids of
    the prompts with widths [B]; vocab: rows of logits; afters: ids of the text that each goes on
    from, none for a text of its own.
    """

    tokenizer: Tokenizer
    vocab: int
    stops: np.ndarray
    limits: np.ndarray
    sources: np.ndarray
    widths: np.ndarray
    afters: Sequence[Sequence[int]] = ()


Build = Callable[[Sequence[Generation], ChainContext], Any]


def chain_of(settings: Sequence[Generation], batch: ChainContext) -> Chain:
    """Return the chain of a batch; all requests must have the same strategy.

    Raises ConfigError for a word that the tokenizer can't write, an id outside the vocabulary, or
    a structure that can't be compiled or ended within a request's limit.
    """
    return chain(*(build(settings, batch) for _, build in _entries(settings)))


def names_in_chain(settings: Generation) -> list[str]:
    """Return, for each processor in a request's chain, the setting that it is for."""
    return [
        next((name for name in names if is_set(settings, (name,))), names[0])
        for names, _ in _entries([settings])
    ]


def _entries(settings: Sequence[Generation]) -> list[tuple[tuple[str, ...], Build]]:
    """Return the entries of ORDER that the chain of requests has."""
    samples = settings[0].strategy in ("draw", "speculate") or bool(settings[0].do_sample)
    entries = []
    for names, build in ORDER:
        shapes, needed = names[0] in DRAWING, any(is_set(one, names) for one in settings)
        if (samples and names == ("temperature",)) or (needed and (samples or not shapes)):
            entries.append((names, build))
    return entries


def parts_of(
    settings: Sequence[Generation], batch: ChainContext, names: Container[str]
) -> dict[str, Any]:
    """Return the processors of these names, set or not, by the first name of each, in order.

    Raises ConfigError as `chain_of` does.
    """
    chosen = [(about[0], build) for about, build in ORDER if about[0] in names]
    return {name: build(settings, batch) for name, build in chosen}


def is_set(settings: Generation, names: Sequence[str]) -> bool:
    """Return whether a request sets one of the settings of a processor."""
    return any(getattr(settings, n) is not False and settings.gives(n) for n in names)


def stops_of(
    settings: Sequence[Generation], tokenizer: Tokenizer, ends: Sequence[int] = ()
) -> np.ndarray:
    """Return the ids [B, E] that end each request: the tokenizer's eos, `ends` and its own."""
    eos = tokenizer.special.eos
    shared: list[int] = [*([] if eos is None else [eos]), *ends]
    rows = [list(dict.fromkeys([*shared, *one.stop_ids])) for one in settings]
    for row in rows:
        _check_ids("stop_ids", row, tokenizer.vocab_size)
    return _table(rows)


def words_of(name: str, text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ids of a text as it stands, and after a space; ConfigError if it has none."""
    spellings = [tokenizer.encode(one) for one in dict.fromkeys((text, f" {text}"))]
    distinct = [
        ids for number, ids in enumerate(spellings) if ids and ids not in spellings[:number]
    ]
    if not distinct:
        raise ConfigError(f"{name}={text!r} has no token in this vocabulary; leave it out")
    return distinct


def words_for(settings: Sequence[Generation], tokenizer: Tokenizer) -> constraints.Words | None:
    """Return what must appear in each request's text, or None; A|B is satisfied by one of them."""
    if not any(one.force_words for one in settings):
        return None
    rows: list[list[list[list[int]]]] = []
    for one in settings:
        texts = [word.split("|") for word in one.force_words]
        if any(not text for row in texts for text in row):
            raise ConfigError(f"force_words={one.force_words[0]!r} has an empty alternative")
        rows.append(
            [[ids for text in row for ids in words_of("force_words", text, tokenizer)]
             for row in texts]
        )  # fmt: skip
    return constraints.must_appear(rows, each=True)


def values_of(
    settings: Sequence[Generation], name: str, off: Any, kind: Any = np.float32
) -> np.ndarray:
    """Return a setting [B] of each request, `off` where it has none."""
    values = [getattr(one, name) for one in settings]
    return np.asarray([off if value is None else value for value in values], kind)


def _scalar_entry(maker: Callable[[Any], Any], name: str, off: Any, kind: Any = np.float32):
    """The entry of a processor with one number a request."""
    return (name,), lambda settings, batch: maker(values_of(settings, name, off, kind))


def _sampling_entry(maker: Any, name: str, off: Any, kind: Any = np.float32):
    """The same for truncation, which leaves beams as many tokens as can end, and one."""

    def build(settings, batch):
        keep = batch.stops.shape[1] + 1 if settings[0].strategy == "beams" else 1
        return maker(values_of(settings, name, off, kind), keep=keep)

    return (name,), build


def _temperature(settings, batch):
    values = [one.sampling_temperature for one in settings]
    return truncation.temperature(np.asarray(values, np.float32))


def _top_h(settings, batch):
    if any(one.top_h is None for one in settings):
        raise ConfigError("top_h can't be turned off for part of a batch; give it to all requests")
    return truncation.top_h(values_of(settings, "top_h", None))


def _biases(settings, batch):
    return bias.sequence_bias([_bias_of(one, batch) for one in settings])


def _bias_of(one: Generation, batch: ChainContext) -> dict[tuple[int, ...], float]:
    biases: dict[tuple[int, ...], float] = {}
    for word in one.bias:
        text, equals, number = word.rpartition("=")
        amount = _number(number)
        if not (equals and text and math.isfinite(amount)):
            raise ConfigError(f"bias={word!r} must be TEXT=NUMBER, as in ' cat=2.5'")
        ids = batch.tokenizer.encode(text)
        if not ids:
            raise ConfigError(f"bias={word!r}: {text!r} has no token in this vocabulary")
        biases[tuple(ids)] = amount
    for word in one.bias_ids:
        text, _, number = word.partition("=")
        amount = _number(number)
        if not (text.isdecimal() and math.isfinite(amount)):
            raise ConfigError(f"bias_ids={word!r} must be ID=NUMBER, as in 17=2.5")
        _check_ids("bias_ids", [int(text)], batch.vocab)
        biases[(int(text),)] = biases.get((int(text),), 0.0) + amount
    return biases


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _bad_words(settings, batch):
    none = [[batch.vocab]]  # an id beyond the logits is dropped
    rows = []
    for one, stops in zip(settings, batch.stops.tolist(), strict=True):
        row = [i for text in one.bad_words for i in words_of("bad_words", text, batch.tokenizer)]
        sequences = [_ids_of(text, batch.vocab) for text in one.bad_words_ids]
        row += [ids for ids in sequences if len(ids) > 1 or ids[0] not in stops]  # a text may end
        rows.append(row or none)
    return bias.bad_words(rows)


def _ids_of(text: str, vocab: int) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"bad_words_ids={text!r} must be token ids, as in 5,17")
    ids = [int(part) for part in text.split(",")]
    _check_ids("bad_words_ids", ids, vocab)
    return ids


def _length_entry(maker: Any, name: str):
    return (name,), lambda settings, batch: maker(
        values_of(settings, name, 0, np.int32), batch.stops
    )


def _source_entry(maker: Any, name: str, off: Any, kind: Any):
    def build(settings, batch):
        return maker(values_of(settings, name, off, kind), batch.sources, batch.widths)

    return (name,), build


def _force_first(settings, batch):
    return _force(settings, batch, "force_first", np.zeros(len(settings), np.int32))


def _force_last(settings, batch):
    return _force(settings, batch, "force_last", batch.limits - 1)


def _force(settings, batch, name: str, positions: np.ndarray):
    is_set = [bool(getattr(one, name)) for one in settings]
    positions = np.where(is_set, positions, NEVER).astype(np.int32)
    return forcing.ForceAt(positions, _ids_table(settings, batch, name))


def _suppress(settings, batch):
    return forcing.Suppress(_ids_table(settings, batch, "suppress_ids"))


def _suppress_first(settings, batch):
    positions = np.asarray([1 if one.force_first else 0 for one in settings], np.int32)
    return forcing.SuppressAt(positions, _ids_table(settings, batch, "suppress_first_ids"))


def _ids_table(settings, batch, name: str) -> np.ndarray:
    rows = [list(getattr(one, name)) for one in settings]
    for row in rows:
        _check_ids(name, row, batch.vocab)
    return _table(rows)


def _decay(settings, batch):
    start = values_of(settings, "decay_start", NEVER, np.int32)
    return forcing.length_decay(start, values_of(settings, "decay_factor", 1.0), batch.stops)


def _watermark(settings, batch):
    marks = {
        (one.watermark, one.watermark_width or 1) for one in settings if one.gives("watermark")
    }
    if len(marks) > 1:
        raise ConfigError("watermark: requests of one batch share their secret number and width")
    key, width = marks.pop()
    amounts = [2.0 if one.watermark_bias is None else one.watermark_bias for one in settings]
    amounts = [amount if one.gives("watermark") else 0.0
               for one, amount in zip(settings, amounts, strict=True)]  # fmt: skip
    ratio = values_of(settings, "watermark_ratio", 0.25)
    return watermark.watermark(key, ratio=ratio, bias=np.asarray(amounts, np.float32), width=width)


def _structure(settings, batch):
    """Return the union of the automata of distinct structures."""
    eos = batch.tokenizer.special.eos
    surface = getattr(batch.tokenizer, "surface", None)
    if eos is None or surface is None:
        raise ConfigError(
            "regex, json_schema and choices need a tokenizer with an end token whose text is its "
            "pieces joined; this one has none"
        )
    structures = [structure_of(one) for one in settings]
    kinds = list(dict.fromkeys(structures))
    pieces = [kind and _spelling(batch.tokenizer, surface.pieces, kind) for kind in kinds]
    automata = [
        kind and _compile(*kind, of or (), eos) for kind, of in zip(kinds, pieces, strict=True)
    ]
    which = np.asarray([kinds.index(one) for one in structures])
    union = structure.requests(automata)
    starts = np.asarray(union.starts)[which]
    for one, kind, start, limit in zip(settings, structures, starts, batch.limits, strict=True):
        least = int(np.asarray(union.distance)[start])
        if kind is not None and least > limit:
            raise ConfigError(
                f"{one.describe(kind[0])} needs {least} tokens at least, but max_new_tokens={limit}"
            )
    free = np.asarray([kind is None for kind in structures])
    within = np.where(free, structure.FAR, batch.limits).astype(np.int32)
    return dataclasses.replace(union, starts=starts, within=within)


def structure_of(one: Generation) -> tuple[str, Any] | None:
    """Return (setting, what the text matches) of a request that has a structure."""
    if one.regex is not None:
        return "regex", one.regex
    if one.json_schema is not None:
        return "json_schema", _schema_text(one.json_schema)
    return ("choices", one.choices) if one.choices else None


def _spelling(
    tokenizer: Any, pieces: tuple[bytes, ...], kind: tuple[str, Any]
) -> tuple[bytes, ...]:
    """Return the bytes of each token; a mark that a regular expression names is that mark."""
    marks = getattr(tokenizer, "marks", list)() if kind[0] == "regex" else ()
    named = [mark for mark in marks if re.escape(mark) in kind[1]]
    if not named:
        return pieces
    spelled, ids = list(pieces), tokenizer.vocabulary()
    for mark in named:
        if ids[mark] != tokenizer.special.eos:
            spelled[ids[mark]] = mark.encode()
    return tuple(spelled)


def _schema_text(schema: str) -> str:
    text = schema
    if schema.startswith("@"):
        try:
            text = Path(schema[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"json_schema={schema}: {reason}") from None
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema={schema[:60]!r} is no JSON: {error}") from None
    return text


@lru_cache(maxsize=32)
def _compile(kind: str, what: Any, pieces: tuple[bytes, ...], stop: int) -> structure.Automaton:
    makers = {
        "regex": structure.regex,
        "json_schema": structure.json_schema,
        "choices": structure.choices,
    }
    return makers[kind](what, pieces, stop)


def _table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    width = max((len(row) for row in rows), default=0)
    width = 1 << (max(width, 1) - 1).bit_length()  # powers of two, so that few are ever compiled
    return np.asarray([[*row, *[NO_TOKEN] * (width - len(row))] for row in rows], np.int32)


def _check_ids(name: str, ids: Sequence[int], vocab: int) -> None:
    for one in ids:
        if one >= vocab:
            raise ConfigError(f"{name}={one} is outside the vocabulary of {vocab} tokens")


def _policy(settings, batch):
    policy = read_policy(settings[0].policy)  # requests of one batch share it
    return policy.processor(batch.tokenizer, batch.afters, batch.limits, batch.stops)


def _renormalize(wanted, batch):
    if not all(one.renormalize for one in wanted):
        raise ConfigError("renormalize can't be on for part of a batch; give it to all requests")
    return truncation.renormalize()


ORDER: tuple[tuple[tuple[str, ...], Build], ...] = (
    (("bias", "bias_ids"), _biases),
    _source_entry(repetition.source_penalty, "source_penalty", 1.0, np.float32),
    _scalar_entry(repetition.repetition_penalty, "repetition_penalty", 1.0),
    _scalar_entry(repetition.presence_penalty, "presence_penalty", 0.0),
    _scalar_entry(repetition.frequency_penalty, "frequency_penalty", 0.0),
    _scalar_entry(repetition.no_repeat_ngram, "no_repeat_ngram", 0, np.int32),
    _source_entry(repetition.no_repeat_source, "no_repeat_source", 0, np.int32),
    (("bad_words", "bad_words_ids"), _bad_words),
    _length_entry(forcing.min_length, "min_length"),
    _length_entry(forcing.min_new_tokens, "min_new_tokens"),
    (("regex", "json_schema", "choices"), _structure),
    (("force_first",), _force_first),
    (("force_last",), _force_last),
    (("decay_factor",), _decay),
    (("suppress_ids",), _suppress),
    (("suppress_first_ids",), _suppress_first),
    (("policy",), _policy),
    (("temperature",), _temperature),
    (("top_h",), _top_h),
    _sampling_entry(truncation.top_k, "top_k", ALL, np.int32),
    _sampling_entry(truncation.top_p, "top_p", 1.0),
    _sampling_entry(truncation.min_p, "min_p", 0.0),
    _sampling_entry(truncation.typical, "typical", 1.0),
    _sampling_entry(truncation.epsilon, "epsilon", 0.0),
    _sampling_entry(truncation.eta, "eta", 0.0),
    _scalar_entry(truncation.top_n_sigma, "top_n_sigma", math.inf),
    (("watermark",), _watermark),
    (("renormalize",), _renormalize),
)

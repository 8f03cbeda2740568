"""Requests of one program decoded as one batch: which loop, and what each text came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.decoding.beam.settings import beams
from jaxgen.decoding.chain import NOT_FINITE, Chain
from jaxgen.decoding.stop import Reason, StopStrings, stop_strings
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.mesh import place as places
from jaxgen.text import programs
from jaxgen.text.batches import Request, Rows, batch_size, bucket, fill_up, pad, rows_of
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.model_steps import dola_layers
from jaxgen.text.processors import ChainContext, chain_of, words_for
from jaxgen.text.programs import StepKind
from jaxgen.text.request import DRAFTED, Generation
from jaxgen.text.text_stream import TextStream

CHUNK = 16  # tokens between looks at the result: 8 cost 7 % of a scan (benchmarks/streaming.py)
SHARED = (
    *("beams", "n_best", "groups", "dola", "lookup", "draft", "draft_tokens"),
    *("watermark", "watermark_width"),
)
BANNING = (
    *("bias", "no_repeat_ngram", "no_repeat_source", "bad_words", "min_length", "min_new_tokens"),
    *("regex", "json_schema", "choices", "force_first", "force_last", "suppress_ids"),
    *("bad_words_ids", "suppress_first_ids"),
)
Piece = tuple[str, Reason | None]


class Alternative(NamedTuple):
    """A token that could have been, and its log-probability."""

    id: int
    logprob: float


class Completion(NamedTuple):
    """A text, why it ended, and what it was made of.

    tokens: new ids, the stop token included; logprobs: of each under the model, top: the likeliest
    alternatives of each (both empty unless asked for); score: of a beam, or of a ranked draw;
    drafted: (guesses, guesses that were right) of speculation.
    """

    text: str
    reason: Reason
    tokens: list[int]
    prompt_tokens: int
    logprobs: Sequence[float] = ()
    top: Sequence[list[Alternative]] = ()
    score: float | None = None
    drafted: tuple[int, int] | None = None


@dataclass(frozen=True)
class RequestBatch:
    """Requests that one program serves, and the model that does it.

    size: rows of the batch, those that only fill it up among them; top: alternatives that are told
    of each token, None where nothing is told of them; draft: a Session that guesses tokens.
    """

    model: LoadedModel
    params: Any
    requests: tuple[Request, ...]
    size: int
    top: int | None
    clock: Callable[[], float]
    draft: Any = None

    @property
    def settings(self) -> Generation:
        """Return the settings of the first request, for what all of them share."""
        return self.requests[0].settings

    @cached_property
    def each(self) -> list[Generation]:
        """Return the settings of every row."""
        return [one.settings for one in fill_up(self.requests, self.size)]

    @cached_property
    def rows(self) -> Rows:
        """Return the arrays of the batch."""
        return rows_of(self.requests, self.model, self.size)

    @cached_property
    def kind(self) -> StepKind:
        """Return what is compiled into the step."""
        config, which = self.model.config, self.settings.dola
        layers = () if which is None else dola_layers(config, which)
        known = min(self.model.tokenizer.vocab_size, config.V)
        return StepKind(known, layers, self.settings.guidance is not None)

    @property
    def parts(self) -> tuple[Any, ModelConfig, StepKind, Rows]:
        """Return what every program begins with."""
        return self.params, self.model.config, self.kind, self.rows

    def chain(self) -> Chain:
        """Return the processors of the batch."""
        filled = fill_up(self.requests, self.size)
        limits = np.asarray([one.limit for one in filled], np.int32)
        source = pad([one.ids for one in filled])
        context = ChainContext(
            self.model.tokenizer, self.kind.known, self.rows.stops, limits, *source
        )
        return chain_of(self.each, context)

    def text_stream(self, request: Request) -> TextStream:
        """Return the text of a request before its first token."""
        ends = (*self.model.stop, *request.settings.stop_ids)
        settings = request.settings
        return TextStream(self.model.tokenizer, request.after, settings.stop, request.limit, ends)

    def length(self) -> int:
        """Return a bucket that holds the new tokens of every request."""
        return bucket(max(one.limit for one in self.requests))


def batch_key(settings: Generation) -> tuple[Any, ...]:
    """Return what requests must have in common to share a batch."""
    return (
        settings.strategy,
        settings.guidance is None,
        settings.top_h is None,
        settings.top_k if settings.strategy == "contrastive" else None,
        settings.draws if settings.strategy == "beams" else None,
        *(getattr(settings, name) for name in SHARED),
    )


def complete(group: RequestBatch) -> list[list[Completion]]:
    """Return the completions of each request: one, or the best beams."""
    strategies = {
        "draw": _drawn,
        "beams": _searched,
        "contrastive": _contrasted,
        "speculate": _speculated,
    }
    return strategies[group.settings.strategy](group)


@dataclass
class RequestState:
    """A request while it is answered."""

    request: Request
    stream: TextStream
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[Alternative]] = field(default_factory=list)

    def push(self, tokens: Sequence[int], detail: Any, row: int) -> Piece:
        """Take a chunk's tokens; return the piece of text, and the reason if it ended with it."""
        if self.stream.reason is not None:
            return "", None
        before = self.stream.num_generated
        piece = self.stream.push(tokens)
        count = self.stream.num_generated - before
        self.tokens += tokens[:count]
        if detail is not None:
            self.logprobs += detail[0][row, :count].tolist()
            self.top += _alternatives(detail[1][row, :count], detail[2][row, :count])
        self.text += piece
        return piece, self.stream.reason

    def end(self, reason: Reason) -> str:
        piece = self.stream.end(reason)
        self.text += piece
        return piece

    def answer(self) -> Completion:
        reason = self.stream.reason
        assert reason is not None
        detail = (self.logprobs, self.top)
        return Completion(self.text, reason, self.tokens, len(self.request.ids), *detail)


def stream(group: RequestBatch, lines: list[RequestState] | None = None) -> Iterator[list[Piece]]:
    """Yield, for each request that is drawn, its next piece of text and why it ended, if it did."""
    begun = group.clock()
    lines = _lines(group) if lines is None else lines
    seconds = [one.settings.max_seconds for one in group.requests]
    top = group.top
    if top is None and any(one.settings.gives(name) for one in group.requests for name in BANNING):
        top = 0  # so that a text without a token left is told from logits that are not finite
    made: Iterator[Any] = programs.sample_chunks(
        *(*group.parts, group.chain(), CHUNK),
        strings=_strings(group),
        top=top,
    )
    for chunk in made:
        tokens = np.asarray(places.fetch(chunk.tokens))
        detail = None
        if top is not None:
            detail = places.fetch((chunk.logprobs, chunk.top_ids, chunk.top_logprobs))
        spent, pieces = group.clock() - begun, []
        for row, line in enumerate(lines):
            fresh = line.stream.reason is None
            if fresh and NOT_FINITE in tokens[row]:
                _refuse(group, row, chunk, line.stream.num_generated)
            piece, ended = line.push(tokens[row].tolist(), detail, row)
            limit = seconds[row]
            if fresh and ended is None and limit is not None and spent >= limit:
                piece, ended = piece + line.end(Reason.TIME), Reason.TIME
            if ended is not None:
                group.rows.limits[row] = 0  # ends the row on the device, with its next chunk
            pieces.append((piece, ended))
        yield pieces


def _lines(group: RequestBatch) -> list[RequestState]:
    return [RequestState(one, group.text_stream(one)) for one in group.requests]


def _drawn(group: RequestBatch) -> list[list[Completion]]:
    lines = _lines(group)
    for _ in stream(group, lines):
        pass
    return [[line.answer()] for line in lines]


def _searched(group: RequestBatch) -> list[list[Completion]]:
    settings, several = group.settings, group.each
    search = beams(
        settings.beams or 1,
        length_penalty=np.asarray([_or(one.length_penalty, 1.0) for one in several], np.float32),
        early_stopping=[one.early_stopping or False for one in several],
        groups=settings.groups or 1,
        diversity=np.asarray([_or(one.diversity, 0.0) for one in several], np.float32),
        do_sample=bool(settings.do_sample),
    )
    num_return = settings.n_best or 1
    found = programs.search_beams(
        *(*group.parts, group.chain(), _strings(group), search),
        words_for(several, group.model.tokenizer),
        length=group.length(),
        num_return=num_return,
    )
    tokens, scores, made, reasons = (
        np.asarray(x) for x in (found.tokens, found.scores, found.num_generated, found.reason)
    )
    rows = []
    for row in range(len(group.requests)):
        if reasons[row, 0] in (Reason.NOT_FINITE, Reason.BANNED):
            raise _failure(row, int(made[row, 0]), Reason(int(reasons[row, 0])))
        kept = [n for n in range(num_return) if np.isfinite(scores[row, n])]
        rows.append([(tokens[row, n, : made[row, n]], float(scores[row, n])) for n in kept])
    return _told(group, rows)


def _contrasted(group: RequestBatch) -> list[list[Completion]]:
    penalty = np.asarray([one.contrastive for one in group.each], np.float32)
    found = programs.search_contrastive(
        *(*group.parts, group.chain(), _strings(group), penalty),
        length=group.length(),
        count=group.settings.top_k or 1,
    )
    limited = zip(np.asarray(found.tokens), group.requests, strict=False)
    return _told(group, [[(row[: one.limit], None)] for row, one in limited])


def _speculated(group: RequestBatch) -> list[list[Completion]]:
    settings, draft = group.settings, group.draft
    found = programs.speculate_tokens(
        *(*group.parts, group.chain()),
        None if draft is None else draft.params,
        length=group.length(),
        count=settings.lookup or settings.draft_tokens or DRAFTED,
        draft_config=None if draft is None else draft.config,
    )
    made = np.asarray(found.num_generated)
    limited = zip(np.asarray(found.tokens), made, group.requests, strict=False)
    told = _told(group, [[(row[:count], None)] for row, count, _ in limited])
    counts = np.stack([found.guessed, found.accepted], axis=1).tolist()
    return [
        [one._replace(drafted=(int(guessed), int(accepted))) for one in row]
        for row, (guessed, accepted) in zip(told, counts, strict=False)
    ]


def _told(
    group: RequestBatch, rows: Sequence[Sequence[tuple[np.ndarray, float | None]]]
) -> list[list[Completion]]:
    """The answers of whole texts (tokens, score) of each request."""
    flat = [(row, *one) for row, texts in enumerate(rows) for one in texts]
    made = []
    for row, tokens, score in flat:
        line = RequestState(group.requests[row], group.text_stream(group.requests[row]))
        if NOT_FINITE in tokens:
            place = int(np.flatnonzero(tokens == NOT_FINITE)[0])
            raise _failure(row, place, Reason.NOT_FINITE)
        line.push(tokens.tolist(), None, 0)
        if line.stream.reason is None:
            line.end(Reason.LENGTH)
        made.append((row, line.answer()._replace(score=score)))
    if group.top is not None:
        made = _scored(group, made, group.top)
    return [[one for owner, one in made if owner == row] for row in range(len(rows))]


def _scored(
    group: RequestBatch, made: list[tuple[int, Completion]], top: int
) -> list[tuple[int, Completion]]:
    """The same answers with what the model says of their tokens, read once more."""
    start = [group.model.start] if group.rows.source is not None else None
    begins = [group.requests[row].ids if start is None else start for row, _ in made]
    texts = [[*begin, *one.tokens] for begin, (_, one) in zip(begins, made, strict=True)]
    size = batch_size(len(made))
    tokens, _ = pad([*texts, *texts[:1] * (size - len(made))])
    source, segments = None, None
    if group.rows.source is not None and group.rows.segments is not None:
        which = [row for row, _ in made] + [made[0][0]] * (size - len(made))
        source, segments = group.rows.source[which], group.rows.segments[which]
    tokens = tokens[:, : max(group.model.config.longest, max(map(len, texts)))]
    params, config, kind, _ = group.parts
    found = programs.score_tokens(params, config, kind, tokens, source, segments, top=top)
    logprobs, ids, best = (np.asarray(x) for x in found)
    told = []
    for place, ((row, one), begin) in enumerate(zip(made, begins, strict=True)):
        here = slice(len(begin) - 1, len(begin) - 1 + len(one.tokens))
        ranked = _alternatives(ids[place, here], best[place, here])
        told.append((row, one._replace(logprobs=logprobs[place, here].tolist(), top=ranked)))
    return told


def _alternatives(ids: np.ndarray, logprobs: np.ndarray) -> list[list[Alternative]]:
    return [
        [Alternative(*pair) for pair in zip(a, b, strict=True)]
        for a, b in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]


def _strings(group: RequestBatch) -> StopStrings | None:
    asked = [one.stop for one in group.each]
    if not any(asked):
        return None
    surface = getattr(group.model.tokenizer, "surface", None)
    if surface is None:
        raise ConfigError(
            f"stop={next(filter(None, asked))[0]!r} needs a tokenizer whose text is its pieces "
            f"joined, but this one rewrites neighbouring pieces"
        )
    return stop_strings(asked, surface.pieces)


def _refuse(group: RequestBatch, row: int, chunk: Any, made: int) -> None:
    reason = Reason(int(np.asarray(chunk.reason)[row])) if hasattr(chunk, "reason") else None
    place = made + int(np.flatnonzero(np.asarray(chunk.tokens)[row] == NOT_FINITE)[0])
    raise _failure(row, place, reason or Reason.NOT_FINITE)


def _failure(row: int, place: int, reason: Reason) -> ConfigError | NonFiniteError:
    if reason == Reason.BANNED:
        return ConfigError(
            f"request {row}: every token is banned at new token {place + 1}; loosen what bans "
            f"them, such as bad_words, no_repeat_ngram, suppress_ids or a structure"
        )
    return NonFiniteError(
        f"request {row}: the logits of new token {place + 1} are not finite; "
        f"the parameters are damaged or diverged: take an earlier checkpoint"
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

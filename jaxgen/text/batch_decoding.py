"""Decoding of requests that share one program as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.decoding.beam.settings import beams
from jaxgen.decoding.chain import NOT_FINITE, Chain
from jaxgen.decoding.detailed import Decoded
from jaxgen.decoding.stop import Reason, StopStrings, stop_strings
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.mesh import place as places
from jaxgen.safety.policy import text_before
from jaxgen.text import moderation, programs
from jaxgen.text.batches import Request, Rows, batch_size, bucket, fill_up, pad, rows_of
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.model_steps import dola_layers
from jaxgen.text.processors import ChainContext, chain_of, values_of, words_for
from jaxgen.text.programs import StepKind
from jaxgen.text.request import DRAFTED, Generation
from jaxgen.text.text_stream import TextStream
from jaxgen.tokens import Tokenizer

CHUNK = 16  # tokens between looks at the result: 8 cost 7 % of a scan (benchmarks/streaming.py)
SHARED = (
    *("beams", "n_best", "groups", "dola", "lookup", "draft", "draft_tokens"),
    *("watermark", "watermark_width", "policy"),
)
BANNING = (
    *("bias", "bias_ids", "no_repeat_ngram", "no_repeat_source", "bad_words", "bad_words_ids"),
    *("min_length", "min_new_tokens", "regex", "json_schema", "choices", "force_first"),
    *("force_last", "suppress_ids", "suppress_first_ids", "policy"),
)
Piece = tuple[str, Reason | None]


class Alternative(NamedTuple):
    """A token that could have been, and its log-probability."""

    id: int
    logprob: float


class Completion(NamedTuple):
    """A generated text, its end reason and its tokens.

    tokens: new ids, the stop token included; logprobs: of each under the model, top: the likeliest
    alternatives of each (both empty unless asked for); score: of a beam, or of a ranked draw;
    drafted: (guesses, guesses that were right) of speculation; rules: names of those of its policy
    that changed the text, whose tokens are as they were drawn.
    """

    text: str
    reason: Reason
    tokens: list[int]
    prompt_tokens: int
    logprobs: Sequence[float] = ()
    top: Sequence[list[Alternative]] = ()
    score: float | None = None
    drafted: tuple[int, int] | None = None
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class RequestBatch:
    """Requests that share one program, and their model.

    size: rows of the batch, with filler rows; top: alternatives to return for each
    token, None for no log-probabilities at all; draft: a Session that guesses tokens.
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
        """Return the static choices of the step."""
        config, which = self.model.config, self.settings.dola
        layers = () if which is None else dola_layers(config, which)
        num_ids = min(self.model.tokenizer.vocab_size, config.V)
        return StepKind(num_ids, layers, self.settings.steered)

    @property
    def parts(self) -> tuple[Any, ModelConfig, StepKind, Rows]:
        """Return the first arguments of every program."""
        return self.params, self.model.config, self.kind, self.rows

    def chain(self) -> Chain:
        """Return the processors of the batch."""
        filled = fill_up(self.requests, self.size)
        limits = np.asarray([one.limit for one in filled], np.int32)
        source = pad([one.ids for one in filled])
        context = ChainContext(
            *(self.model.tokenizer, self.kind.num_ids, self.rows.stops, limits, *source),
            [one.after for one in filled],
        )
        return chain_of(self.each, context)

    def begin(self, request: Request) -> RequestState:
        """Return a request before its first token."""
        return begin(self.model, request)

    @property
    def length(self) -> int:
        """Return a bucket that holds the new tokens of every request."""
        return bucket(max(one.limit for one in self.requests))

    @property
    def inputs(self) -> tuple[Any, ModelConfig, StepKind, Rows, Chain, StopStrings | None]:
        """Return the first arguments of every program, processors and stop strings."""
        return *self.parts, self.chain(), self._strings()

    def _strings(self) -> StopStrings | None:
        strings = [one.stop for one in self.each]
        if not any(strings):
            return None
        return stop_strings(strings, pieces_for(next(filter(None, strings)), self.model.tokenizer))


def pieces_for(strings: Sequence[str], tokenizer: Tokenizer) -> Sequence[bytes]:
    """Return the bytes of each token; ConfigError if a tokenizer's tokens can't be searched."""
    surface = getattr(tokenizer, "surface", None)
    if surface is None:
        raise ConfigError(
            f"stop={strings[0]!r} needs a tokenizer whose text is its pieces joined, but this one "
            f"rewrites neighbouring pieces"
        )
    return surface.pieces


def batch_key(settings: Generation) -> tuple[Any, ...]:
    """Return the settings that requests of one batch must share."""
    return (
        settings.strategy,
        settings.steered,
        settings.top_h is None,
        settings.overflow == "slide",
        settings.renormalize is True,
        settings.top_k if settings.strategy == "contrastive" else None,
        settings.draws if settings.strategy == "beams" else None,
        *(getattr(settings, name) for name in SHARED),
    )


def complete(group: RequestBatch) -> list[list[Completion]]:
    """Return the completions of each request: one, or the best beams."""
    search = SEARCHES.get(group.settings.strategy)
    if search is not None:
        return _completions(group, search(group))
    states = [group.begin(one) for one in group.requests]
    for _ in stream(group, states):
        pass
    return [[state.completion()] for state in states]


@dataclass
class RequestState:
    """A request while it is answered."""

    request: Request
    stream: TextStream
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[Alternative]] = field(default_factory=list)
    rules: tuple[str, ...] = ()

    def push(self, tokens: Sequence[int], detail: Any = None, row: int = 0) -> Piece:
        """Take a chunk's tokens; return the piece of text, and the reason if it ended with it."""
        if self.stream.reason is not None:
            return "", None
        before = self.stream.num_generated
        piece = self.stream.push(tokens)
        count = self.stream.num_generated - before
        self.tokens += tokens[:count]
        if detail is not None:
            self.logprobs += detail.logprobs[row, :count].tolist()
            self.top += _alternatives(detail.top_ids[row, :count], detail.top_logprobs[row, :count])
        return self._show(piece), self.stream.reason

    def push_last(
        self, index: int, tokens: np.ndarray, reason: int, detail: Any = None, row: int = 0
    ) -> Piece:
        """Take tokens that end with NOT_FINITE: where a policy left none to draw, the text ends.

        Raises the `failure` of any other; index: the request's.
        """
        if reason != Reason.BANNED or self.request.settings.policy is None:
            raise failure(index, self.stream.num_generated, tokens, reason)
        end = int(np.flatnonzero(tokens == NOT_FINITE)[0])
        piece, ended = self.push(tokens[:end].tolist(), detail, row)
        piece += "" if ended is not None else self.end(Reason.FILTER)
        return piece, self.stream.reason

    def end(self, reason: Reason) -> str:
        return self._show(self.stream.end(reason))

    def _show(self, piece: str) -> str:
        self.text += piece
        if self.stream.reason is not None:
            self.rules = moderation.record(self.request.settings.policy, self.stream.filters)
        return piece

    def completion(self) -> Completion:
        if self.stream.reason is None:
            self.end(Reason.LENGTH)
        reason, about = self.stream.reason, (len(self.request.ids), self.logprobs, self.top)
        assert reason is not None
        return Completion(self.text, reason, self.tokens, *about, rules=self.rules)


def begin(model: LoadedModel, request: Request) -> RequestState:
    """Return a request before its first token."""
    settings, after = request.settings, request.after
    before = "" if settings.policy is None else text_before(model.tokenizer, after)
    passed = moderation.filters(settings.policy, before)
    about = (after, settings.stop, request.limit, (*model.stop, *settings.stop_ids), passed)
    return RequestState(request, TextStream(model.tokenizer, *about))


def stream(group: RequestBatch, states: list[RequestState]) -> Iterator[list[Piece]]:
    """Yield, for each request that is sampled, its next piece of text and why it ended, if so."""
    begun = group.clock()
    top = group.top
    if top is None and any(one.settings.gives(name) for one in group.requests for name in BANNING):
        top = 0  # so that a text without a token left is told from logits that are not finite
    chunks = programs.sample_chunks(*group.inputs, CHUNK, top=top)
    for chunk in chunks:
        detail = _fetch(chunk) if isinstance(chunk, Decoded) else None
        tokens = np.asarray(places.fetch(chunk.tokens))
        spent, pieces = group.clock() - begun, []
        for row, state in enumerate(states):
            fresh, limit = state.stream.reason is None, state.request.settings.max_seconds
            if fresh and NOT_FINITE in tokens[row]:
                reason = Reason.NOT_FINITE if detail is None else int(detail.reason[row])
                piece, ended = state.push_last(row, tokens[row], reason, detail, row)
            else:
                piece, ended = state.push(tokens[row].tolist(), detail, row)
            if fresh and ended is None and limit is not None and spent >= limit:
                piece, ended = piece + state.end(Reason.TIME), Reason.TIME
            if ended is not None:
                group.rows.limits[row] = 0  # ends the row on the device, with its next chunk
            pieces.append((piece, ended))
        yield pieces


def _fetch(found: Decoded) -> Any:
    """A Decoded of NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(places.fetch(x)), found.without_cache())


def _search_beams(group: RequestBatch) -> Decoded:
    settings, several = group.settings, group.each
    search = beams(
        settings.beams or 1,
        length_penalty=values_of(several, "length_penalty", 1.0),
        early_stopping=[one.early_stopping or False for one in several],
        groups=settings.groups or 1,
        diversity=values_of(several, "diversity", 0.0),
        do_sample=bool(settings.do_sample),
    )
    words, num_return = words_for(several, group.model.tokenizer), settings.n_best or 1
    sizes = {"length": group.length, "num_return": num_return}
    return programs.search_beams(*group.inputs, search, words, **sizes)


def _search_contrastive(group: RequestBatch) -> Decoded:
    penalty, count = values_of(group.each, "contrastive", 0.0), group.settings.top_k or 1
    return programs.search_contrastive(*group.inputs, penalty, length=group.length, count=count)


def _speculate(group: RequestBatch) -> Decoded:
    settings, draft = group.settings, group.draft
    return programs.speculate_tokens(
        *(*group.parts, group.chain()),
        None if draft is None else draft.params,
        length=group.length,
        count=settings.lookup or settings.draft_tokens or DRAFTED,
        draft_config=None if draft is None else draft.config,
    )


# Strategies that do not stream.
SEARCHES = {
    "beams": _search_beams,
    "contrastive": _search_contrastive,
    "speculate": _speculate,
}


def _completions(group: RequestBatch, decoded: Decoded) -> list[list[Completion]]:
    """Return the completions of each request, of texts that are whole."""
    result = _fetch(decoded)
    length = result.tokens.shape[-1]
    tokens, counts, reasons = (
        x.reshape(group.size, -1, *end)
        for x, end in ((result.tokens, (length,)), (result.num_generated, ()), (result.reason, ()))
    )
    completions: list[tuple[int, Completion]] = []
    for row, n in np.ndindex(len(group.requests), counts.shape[1]):
        if reasons[row, n] in (Reason.NOT_FINITE, Reason.BANNED):
            state = group.begin(group.requests[row])
            state.push_last(row, tokens[row, n], int(reasons[row, n]))
            completions += [(row, state.completion())] * (n == 0)
            continue
        score = None if result.scores is None else float(result.scores[row, n])
        if score == -np.inf:  # no text
            continue
        state = group.begin(group.requests[row])
        state.push(tokens[row, n, : counts[row, n]].tolist())
        drafted = None
        if result.guessed is not None and result.accepted is not None:
            drafted = int(result.guessed[row]), int(result.accepted[row])
        completions.append((row, state.completion()._replace(score=score, drafted=drafted)))
    if group.top is not None:
        completions = _add_scores(group, completions, group.top)
    return [
        [one for owner, one in completions if owner == row] for row in range(len(group.requests))
    ]


def _add_scores(
    group: RequestBatch, completions: list[tuple[int, Completion]], top: int
) -> list[tuple[int, Completion]]:
    """Return the completions with log-probabilities, by scoring them again."""
    start = [group.model.start] if group.rows.source is not None else None
    begins = [group.requests[row].ids if start is None else start for row, _ in completions]
    texts = [[*begin, *one.tokens] for begin, (_, one) in zip(begins, completions, strict=True)]
    size = batch_size(len(completions))
    tokens, _ = pad([*texts, *texts[:1] * (size - len(completions))])
    which = [row for row, _ in completions] + [completions[0][0]] * (size - len(completions))
    own = (group.rows.source, group.rows.segments, group.rows.media)
    read = [None if rows is None else rows[which] for rows in own]
    tokens = tokens[:, : max(group.model.config.longest, max(map(len, texts)))]
    params, config, kind, _ = group.parts
    scores = programs.score_tokens(params, config, kind, tokens, *read, top=top)
    logprobs, ids, best = (np.asarray(x) for x in scores)
    scored = []
    for i, ((row, one), begin) in enumerate(zip(completions, begins, strict=True)):
        here = slice(len(begin) - 1, len(begin) - 1 + len(one.tokens))
        ranked = _alternatives(ids[i, here], best[i, here])
        scored.append((row, one._replace(logprobs=logprobs[i, here].tolist(), top=ranked)))
    return scored


def _alternatives(ids: np.ndarray, logprobs: np.ndarray) -> list[list[Alternative]]:
    return [
        [Alternative(*pair) for pair in zip(a, b, strict=True)]
        for a, b in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]


def failure(row: int, before: int, tokens: np.ndarray, reason: int) -> ConfigError | NonFiniteError:
    """Return the error of a request whose new tokens, `before` of them earlier, hold NOT_FINITE."""
    position = before + int(np.flatnonzero(tokens == NOT_FINITE)[0]) + 1
    if reason == Reason.BANNED:
        return ConfigError(
            f"request {row}: every token is banned at new token {position}; loosen what bans them, "
            f"such as bad_words, no_repeat_ngram, suppress_ids or a structure"
        )
    return NonFiniteError(
        f"request {row}: the logits of new token {position} are not finite; "
        f"the parameters are damaged or diverged: take an earlier checkpoint"
    )


def rank(answers: list[Completion], settings: Generation) -> list[Completion]:
    """Return the best samples by mean log-probability, or all without best_of."""
    if not settings.best_of:
        return answers
    ranked = [one._replace(score=sum(one.logprobs) / len(one.logprobs)) for one in answers]
    ranked.sort(key=lambda one: -(one.score or 0.0))
    return ranked[: settings.samples]

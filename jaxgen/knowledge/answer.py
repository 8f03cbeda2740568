"""Answers from documents: passages in the prompt, quotes copied by an automaton, or "not there"."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.decoding.chain import chain
from jaxgen.decoding.processors.structure import trie
from jaxgen.errors import ConfigError
from jaxgen.knowledge import bm25, folder
from jaxgen.knowledge.index import COUNT, Hit, Index
from jaxgen.knowledge.passages import HEADINGS, sentences
from jaxgen.pretrained.chat_template import Message, has_chat_template
from jaxgen.text import generate
from jaxgen.text.batches import bucket
from jaxgen.text.loaded_model import check_generates
from jaxgen.text.prompts import Text
from jaxgen.text.request import Generation
from jaxgen.text.session import Session

NOT_THERE = "not in the documents"
ASK = (
    "Answer the question from these passages alone, in one or two sentences.\n\n"
    "{passages}\n\nQuestion: {question}"
)
QUOTE = '\n\nThe passages say: "'  # what a quote is copied after
SENTENCE = 300  # characters of a quote at most
LENGTH = 128  # tokens of it at most
NEARLY = 0.8  # of what the best quote shares with the answer, that the model may copy instead


class Citation(NamedTuple):
    """Words of a document: quote == document[start:end], counted in characters."""

    document: str
    start: int
    end: int
    quote: str


class Answer(NamedTuple):
    """What a model answers, on what it rests, and how well the documents fit the question, 0 to 1.

    text: NOT_THERE where they don't. hits: the passages in the prompt, none for a plain answer.
    """

    text: str
    citations: list[Citation]
    confidence: float
    hits: list[Hit]


def ask(
    session: Session,
    index: Index,
    question: str,
    settings: Generation | None = None,
    *,
    count: int = COUNT,
    quotes: int = 1,
    **changes: Any,
) -> Answer:
    """Return an answer to a question from the documents of an index.

    Without a passage that fits, it is what the model says by itself, bit for bit. Of an index with
    a threshold, a question below it is answered by NOT_THERE.

    Args:
        session: a decoder; one with a chat template is asked in its form.
        index: of the documents.
        question: any text, not blank.
        settings, changes: of the answer, as of `Session.generate`.
        count: passages to put in the prompt at most, as far as they fit.
        quotes: sentences to cite at most, 0 or more, each copied from a passage.

    Raises:
        ConfigError: for an empty question, or a model that is no decoder.
    """
    check_generates(session.model)
    if session.reads_sources:
        raise ConfigError("ask needs a decoder, and the model is an encoder-decoder")
    if quotes < 0:
        raise ConfigError(f"quotes={quotes} must be at least 0")
    hits = index.search(question, count)
    confidence = index.confidence(question, hits)
    if index.threshold is not None and confidence < index.threshold:
        return Answer(NOT_THERE, [], confidence, [])
    prompt, hits = _prompt(session, question, hits)
    text = session.generate(prompt, settings, **changes)
    citations = _quoted(session, index, prompt, text, hits, quotes) if hits else []
    return Answer(text, citations, confidence, hits)


def grounded(
    index: Index,
    session: Session,
    messages: Sequence[Message],
    *,
    count: int = COUNT,
    context: int | None = None,
) -> tuple[Sequence[Message], list[Hit]]:
    """Return a chat whose last message of the user has passages before it, and these passages.

    Where none fits, or less than the threshold of the index asks for, the chat as it is. context:
    tokens of a prompt and its text at most, None: the model's; passages get half of it.
    """
    last = messages[-1] if len(messages) else {}
    question = last.get("content")
    if last.get("role") != "user" or not isinstance(question, str) or not question.strip():
        return messages, []
    hits = index.search(question, count)
    least = index.threshold
    if not hits or (least is not None and index.confidence(question, hits) < least):
        return messages, []
    hits = _fitting(session, question, hits, context)
    if not hits:
        return messages, []
    return [*messages[:-1], {**last, "content": _asked(question, hits)}], hits


def is_verified(index: Index, citation: Citation) -> bool:
    """Return whether the words of a citation stand in its document, where it says."""
    number = index.numbers.get(citation.document)
    if number is None:
        return False
    return index.document(number)[citation.start : citation.end] == citation.quote


def calibrate(index: Index, questions: Sequence[Mapping[str, Any]], count: int = COUNT) -> float:
    """Write into an index the confidence below which a question is answered by NOT_THERE.

    Args:
        index: of the documents.
        questions: held-out ones, {"question": text, "answerable": true or false}; of both kinds,
            the threshold tells them apart best, by the mean of both rates; of answerable ones
            alone, 95 of 100 pass.
        count: passages that are looked at, as of `ask`.

    Returns:
        The threshold, 0 to 1.

    Raises:
        ConfigError: for no answerable question, or a field that is missing.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    for number, row in enumerate(questions, 1):
        question, answerable = row.get("question"), row.get("answerable", True)
        if not isinstance(question, str) or not isinstance(answerable, bool):
            raise ConfigError(
                f"question {number} is {row!r:.80}; write "
                f'{{"question": "...", "answerable": true}}, or false'
            )
        scores[answerable].append(index.confidence(question, index.search(question, count)))
    there, absent = np.sort(scores[True]), np.sort(scores[False])
    if not len(there):
        raise ConfigError("no question is answerable, so there is nothing to tell apart; add some")
    threshold = float(there[len(there) // 20])
    if len(absent):
        values = np.unique([0.0, *there, *absent])
        middles = [0.0, *((values[1:] + values[:-1]) / 2)]
        rates = [(there >= one).mean() + (absent < one).mean() for one in middles]
        threshold = float(middles[int(np.argmax(rates))])
    folder.add(index.home, {"threshold": threshold, "calibrated_on": len(there) + len(absent)})
    return threshold


def _asked(question: str, hits: Sequence[Hit]) -> str:
    passages = "\n\n".join(f"[{n}] {hit.document}\n{hit.shown}" for n, hit in enumerate(hits, 1))
    return ASK.format(passages=passages, question=question)


def _fitting(
    session: Session, question: str, hits: Sequence[Hit], context: int | None = None
) -> list[Hit]:
    """Return the first hits that take half of the context at most, with what is around them."""
    room = (context or session.context) // 2
    for count in range(len(hits), 0, -1):
        if len(session.tokenizer.encode(_asked(question, hits[:count]))) <= room:
            return list(hits[:count])
    return []


def _prompt(session: Session, question: str, hits: Sequence[Hit]) -> tuple[Text, list[Hit]]:
    """Return (what the model reads, the passages in it)."""
    chosen = _fitting(session, question, hits)
    text = _asked(question, chosen) if chosen else question
    home = session.model.home
    if home is not None and has_chat_template(home):
        return session.chat_ids([{"role": "user", "content": text}]), chosen
    return (f"{text}\nAnswer:" if chosen else question), chosen


def _quoted(
    session: Session, index: Index, prompt: Text, text: str, hits: Sequence[Hit], quotes: int
) -> list[Citation]:
    """Return sentences of the passages, each copied token by token after the answer.

    Those that share most with the answer are left to the model to choose from; none where no
    sentence has a word of it that others lack.
    """
    encode, stop = session.tokenizer.encode, session.tokenizer.special.eos
    if stop is None:
        raise ConfigError("quotes need a tokenizer with an end of text; ask with quotes=0")
    spans: dict[tuple[int, ...], Citation] = {}
    for hit in hits:
        for start, end in sentences(hit.text, SENTENCE):
            words = hit.text[start:end]
            ids = tuple(encode(words))
            is_title = HEADINGS.fullmatch(words) is not None
            if 0 < len(ids) < LENGTH and any(map(str.isalnum, words)) and not is_title:
                place = Citation(hit.document, hit.start + start, hit.start + end, words)
                spans.setdefault(ids, place)
    read = [*session.ids(prompt), *encode(text + QUOTE)]
    citations: list[Citation] = []
    shared = _shared(text, {ids: place.quote for ids, place in spans.items()})
    while shared and len(citations) < quotes:
        best = max(shared.values())
        fitting = [ids for ids, weight in shared.items() if weight >= NEARLY * best]
        ids = _copied(session, read, fitting, stop)
        if ids is None:
            break
        citations.append(spans[ids])
        del shared[ids]
        read = [*read, *ids, *encode(f'"{QUOTE}')]
    for citation in citations:
        assert is_verified(index, citation), citation
    return citations


def _shared(answer: str, quotes: Mapping[tuple[int, ...], str]) -> dict[tuple[int, ...], float]:
    """Return how much quotes share with an answer: its words, weighed by how rare they are."""
    of = {ids: set(bm25.words(quote)) for ids, quote in quotes.items()}
    counts = Counter(word for some in of.values() for word in some)
    rare = {word for word, count in counts.items() if count <= max(len(of) / 2, 1)}
    own = rare & set(bm25.words(answer))
    weights = {
        ids: sum(math.log1p(len(of) / counts[word]) for word in some & own)
        for ids, some in of.items()
    }
    return {ids: weight for ids, weight in weights.items() if weight}


def _copied(
    session: Session, read: list[int], sequences: list[tuple[int, ...]], stop: int
) -> tuple[int, ...] | None:
    """Return which of some sequences the model goes on with; None where there is no room."""
    vocab, length = session.config.vocab_size, bucket(max(map(len, sequences)) + 1)
    room = session.context - length
    if room < 1:
        return None
    read = read[-room:]
    width = min(bucket(len(read)), room)
    prompt = np.zeros((1, width), np.int32)
    prompt[0, : len(read)] = read
    tokens = generate.generate(
        session.model.params,
        session.config,
        prompt,
        jax.random.key(0),
        length=length,
        sample=chain(trie(sequences, stop, vocab)),
        lengths=np.asarray([len(read)], np.int32),
        stop=np.asarray([stop], np.int32),
    )
    ids = np.asarray(tokens[0]).tolist()
    return tuple(ids[: ids.index(stop)])

"""Attacks on classifiers: words are exchanged for near ones until the class is another.

Greedy and beam search replace words from the most important one on (Jin et al. 2020, "TextFooler");
HotFlip takes the exchanges that the gradient promises most of (Ebrahimi et al. 2018). The attack on
a text is a generator that asks for the classes of texts; all are asked together, in batches of one
size, so that there is one compiled program for all texts and words.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import arguments, tree
from jaxgen.arguments import at_least, between
from jaxgen.config import ModelConfig
from jaxgen.data.augment.words import Neighbours, cased, split
from jaxgen.errors import ConfigError
from jaxgen.ops.contract import lookup
from jaxgen.ops.perturbed import Perturbed
from jaxgen.text import reading_programs
from jaxgen.text.batches import Progress, pad, segments_of
from jaxgen.text.loaded_model import LoadedModel, require
from jaxgen.train.losses import causal_loss

TABLE = "embed/tokens"
AT_ONCE = 64  # texts whose attacks run together
Asks = Generator[tuple[str, list[str]], Any, "AttackResult"]  # ("classes" or "slopes", texts)


@arguments.checked(
    **dict.fromkeys(("beam", "candidates", "batch"), at_least(1)),
    similarity=between(-1, 1),
    edits=between(0, 1, above=True),
)
@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How far an attack may go; raises ConfigError naming the field at fault.

    method: greedy; beam, which keeps several versions of a text; or hotflip, by gradient. beam: how
    many. candidates: words that are tried in the place of one. similarity: least cosine of a word
    and what replaces it. edits: largest share of a text's words that is replaced, at least one.
    keep: words, in lower case, that stay.
    """

    method: Literal["greedy", "beam", "hotflip"] = "greedy"
    beam: int = 4
    candidates: int = 20
    similarity: float = 0.3
    edits: float = 0.3
    keep: frozenset[str] = frozenset()
    batch: int = 128


@dataclass(frozen=True)
class AttackResult:
    """What an attack has made of a text: another text, and which words it exchanged.

    swaps: (number of the word, old, new). label, before, after: numbers of classes; where before is
    not the label there was nothing to attack. chance: of the label, at last. queries: texts whose
    class was asked for.
    """

    text: str
    label: int
    before: int
    other: str
    after: int
    chance: float
    swaps: tuple[tuple[int, str, str], ...] = ()
    queries: int = 0

    @property
    def attacked(self) -> bool:
        """Whether the text was told right before."""
        return self.before == self.label

    @property
    def success(self) -> bool:
        """Whether the class is another because of the attack."""
        return self.attacked and self.after != self.label


@dataclass(frozen=True)
class _Version:
    """A text with some words exchanged, and the probabilities of its classes."""

    pieces: tuple[str, ...]
    probs: Any
    swaps: tuple[tuple[int, str, str], ...] = ()

    def exchanged(self, place: int, word: str) -> _Version:
        new = cased(word, self.pieces[place])
        pieces = (*self.pieces[:place], new, *self.pieces[place + 1 :])
        return _Version(pieces, None, (*self.swaps, (place // 2, self.pieces[place], new)))

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def attack(
    model: LoadedModel,
    texts: Sequence[str],
    labels: Sequence[int],
    neighbours: Neighbours,
    settings: AttackSettings | None = None,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Return what attacks make of texts, of which a classifier tells the class.

    Args:
        model: with a head of classes that exclude one another; hotflip needs one tower.
        texts, labels: what is attacked, and the numbers of their classes.
        neighbours: the words that may stand in the place of others.
        settings: None takes the defaults.

    Raises ConfigError for a model of another kind. The end of a text longer than the context is
    neither read nor attacked.
    """
    settings = settings or AttackSettings()
    require(model, "attack", head=("classes",))
    problem = model.generation_config.problem_type
    if model.config.classes == 1 or problem not in (None, "single_label_classification"):
        raise ConfigError(
            f"an attack needs a model whose classes exclude one another, not problem_type="
            f"{problem} with classes={model.config.classes}"
        )
    if settings.method == "hotflip" and model.reads_sources:
        raise ConfigError("method=hotflip is for a model of one tower; take greedy or beam")
    oracle = _Oracle(model, texts, settings.batch)
    probs = oracle.classes(list(texts))
    search = partial(_flip, oracle) if settings.method == "hotflip" else _substitute
    waiting = [
        (number, _begin(search, texts[number], labels[number], probs[number], neighbours, settings))
        for number in range(len(texts))
    ]
    return _together(waiting, oracle, labels, progress)


def _begin(search, text, label, probs, neighbours, settings) -> Asks:
    """Attack a text that is told right; leave another as it is."""
    begun = _Version(tuple(split(text)), probs)
    if int(np.argmax(probs)) == label:
        last, queries = yield from search(begun, label, neighbours, settings)
    else:
        last, queries = begun, 0
    after, chance = int(np.argmax(last.probs)), float(last.probs[label])
    before = int(np.argmax(probs))
    return AttackResult(text, label, before, last.text, after, chance, last.swaps, queries)


def _together(
    waiting: list[tuple[int, Asks]],
    oracle: _Oracle,
    labels: Sequence[int],
    progress: Progress | None,
) -> list[AttackResult]:
    """Run the attacks, up to AT_ONCE of them in step, and answer what they ask in batches."""
    results: dict[int, AttackResult] = {}
    count, waiting = len(waiting), waiting[::-1]
    running: list[tuple[int, Asks, tuple[str, list[str]]]] = []

    def move(number: int, asks: Asks, answer: Any) -> None:
        try:
            running.append((number, asks, asks.send(answer)))
        except StopIteration as end:
            results[number] = end.value
            if progress:
                progress(len(results), count)

    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            move(*waiting.pop(), None)
        requests, running[:] = list(running), []
        answers = {}
        for kind in ("classes", "slopes"):
            mine = [(number, texts) for number, _, (what, texts) in requests if what == kind]
            flat = [text for _, texts in mine for text in texts]
            own = [labels[number] for number, texts in mine for _ in texts]
            rows = iter(oracle.classes(flat) if kind == "classes" else oracle.slopes(flat, own))
            answers |= {number: [next(rows) for _ in texts] for number, texts in mine}
        for number, asks, _ in requests:
            move(number, asks, answers[number])
    return [results[number] for number in range(count)]


def _places(begun: _Version, neighbours: Neighbours, settings: AttackSettings):
    """Return the places of words that may be exchanged with what for, and how many may be."""
    words = range(1, len(begun.pieces), 2)
    tried = {
        place: [word for word, _ in near]
        for place in words
        if begun.pieces[place].lower() not in settings.keep
        and (near := neighbours.near(begun.pieces[place], settings.candidates, settings.similarity))
    }
    return tried, max(int(settings.edits * len(words)), 1)


def _substitute(begun: _Version, label: int, neighbours: Neighbours, settings: AttackSettings):
    """Exchange words from the most important one on: that without which the label loses most."""
    tried, most = _places(begun, neighbours, settings)
    if not tried:
        return begun, 0
    without = [
        "".join((*begun.pieces[:place], *begun.pieces[place + 1 :])).strip() or begun.text
        for place in tried
    ]
    left = yield "classes", without
    queries = len(without)
    chances = dict(zip(tried, (row[label] for row in left), strict=True))
    keep = settings.beam if settings.method == "beam" else 1
    versions = [begun]
    for place in sorted(tried, key=lambda place: chances[place]):
        options = [
            version.exchanged(place, word)
            for version in versions
            if len(version.swaps) < most
            for word in tried[place]
        ]
        if not options:
            break
        rows = yield "classes", [one.text for one in options]
        queries += len(options)
        scored = [
            _Version(one.pieces, row, one.swaps) for one, row in zip(options, rows, strict=True)
        ]
        versions = sorted([*versions, *scored], key=lambda one: one.probs[label])[:keep]
        if wrong := [one for one in versions if int(np.argmax(one.probs)) != label]:
            return wrong[0], queries
    return versions[0], queries


def _flip(
    oracle: _Oracle,
    begun: _Version,
    label: int,
    neighbours: Neighbours,
    settings: AttackSettings,
):
    """Make the exchanges that the gradient promises most of, one after another."""
    tried, most = _places(begun, neighbours, settings)
    best, queries = begun, 0
    while tried and len(best.swaps) < most:
        (slope,) = yield "slopes", [best.text]
        promised = [
            (gain, place, word)
            for place in tried
            for gain, word in oracle.gains(slope, best.pieces, place, tried[place])
        ]
        promised.sort(key=lambda one: -one[0])
        options = [
            best.exchanged(place, word) for _, place, word in promised[: settings.candidates]
        ]
        rows = yield "classes", [one.text for one in options]
        queries += 1 + len(options)
        row, one = min(zip(rows, options, strict=True), key=lambda pair: pair[0][label])
        if row[label] >= best.probs[label]:
            break
        best = _Version(one.pieces, row, one.swaps)
        del tried[2 * best.swaps[-1][0] + 1]
        if int(np.argmax(row)) != label:
            break
    return best, queries


class _Oracle:
    """A classifier that is asked in batches of one size, so that it is compiled once."""

    def __init__(self, model: LoadedModel, texts: Sequence[str], batch: int) -> None:
        self.model, self.batch = model, batch
        longest = max(map(len, self._rows(texts)), default=1)
        # Exchanged words may have more tokens; what is longer still loses its end.
        self.width = min(-(-(longest + longest // 4 + 1) // 16) * 16, model.config.longest)
        self._vectors: dict[str, np.ndarray] = {}

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        before, after = self.model.around
        most = getattr(self, "width", self.model.config.longest)
        rows = self.model.tokenizer.encode_many(texts)
        return [[*before, *row[: most - len(before) - len(after)], *after] for row in rows]

    def _batches(self, texts: Sequence[str]):
        for begin in range(0, len(texts), self.batch):
            rows = self._rows(texts[begin : begin + self.batch])
            tokens, widths = pad(rows, width=self.width, size=self.batch)
            yield begin, len(rows), tokens, segments_of(tokens, np.maximum(widths, 1))

    def classes(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the probabilities of the classes of each text."""
        model = self.model
        problem = model.generation_config.problem_type
        batches = [
            (
                count,
                reading_programs.class_scores(
                    model.params, model.config, tokens, segments, None, model.start, problem
                ),
            )
            for _, count, tokens, segments in self._batches(texts)
        ]
        return [row for count, probs in batches for row in np.asarray(probs)[:count]]

    def slopes(self, texts: Sequence[str], labels: Sequence[int]) -> list[np.ndarray]:
        """Return the gradients [T, D] of the loss of each text's label."""
        gradients = []
        for begin, count, tokens, segments in self._batches(texts):
            targets = np.zeros((self.batch, 1), np.int32)
            targets[:count, 0] = labels[begin : begin + count]
            slopes = _slopes(self.model.params, self.model.config, tokens, segments, targets)
            gradients += [*np.asarray(slopes)[:count]]
        return gradients

    def gains(
        self, slope: np.ndarray, pieces: Sequence[str], place: int, words: Sequence[str]
    ) -> list[tuple[float, str]]:
        """Return (what the loss would gain, to first order, word) for words in the place of one."""
        begin = len(self._rows(["".join(pieces[:place]).rstrip(" ") or ""])[0])
        end = len(self._rows(["".join(pieces[: place + 1])])[0])
        after = len(self.model.around[1])
        summed = slope[begin - after : end - after].sum(0)
        own = self._vector(pieces[place])
        return [(float((self._vector(cased(w, pieces[place])) - own) @ summed), w) for w in words]

    def _vector(self, word: str) -> np.ndarray:
        """Return the mean vector of a word's tokens."""
        if word not in self._vectors:
            ids = jnp.asarray(self.model.tokenizer.encode(f" {word}"), jnp.int32)
            table = tree.flatten(self.model.params)[TABLE]
            self._vectors[word] = np.asarray(lookup(table, ids, dtype="float32")).mean(0)
        return self._vectors[word]


@partial(jax.jit, static_argnames=("config",))
def _slopes(params: Any, config: ModelConfig, tokens, segments, targets):
    flat = tree.flatten(params)

    def loss(rows):
        perturbed = tree.unflatten(flat | {TABLE: Perturbed(flat[TABLE], rows)})
        batch = {"tokens": tokens, "segments": segments, "targets": targets}
        return causal_loss(perturbed, config, batch).total

    return jax.grad(loss)(jnp.zeros((*tokens.shape, config.embed_width), jnp.float32))


def summary(results: Sequence[AttackResult], seconds: float) -> dict[str, float]:
    """Return the figures of an attack: accuracies, success, queries of a text, words exchanged."""
    attacked = [one for one in results if one.attacked]
    won = [one for one in attacked if one.success]
    queries = sum(one.queries for one in attacked)
    mean: Callable[[list[float]], float] = lambda xs: float(np.mean(xs)) if xs else 0.0  # noqa: E731
    return {
        "texts": float(len(results)),
        "accuracy": mean([float(one.attacked) for one in results]),
        "accuracy_attacked": mean([float(one.attacked and not one.success) for one in results]),
        "success_rate": len(won) / max(len(attacked), 1),
        "queries": queries / max(len(attacked), 1),
        "edits": mean([len(one.swaps) / max(len(split(one.text)) // 2, 1) for one in won]),
        "queries_per_second": (queries + len(results)) / max(seconds, 1e-9),
    }

"""Sizes of a tokenizer, a model and its training, chosen for a text and a machine.

The rules, which `jaxgen train --help` tells in short:

- The tokenizer grows with the text (VOCABULARIES), up to PIECES pieces a dimension of the model.
- The model is the largest of MODELS that has at most one weight a byte of text, sees at least
  TOKENS_PER_WEIGHT tokens for each weight in the time there is, and fits the memory.
- It trains for that time, but sees no text more than EPOCHS times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxgen import data, files
from jaxgen import settings as sets
from jaxgen.data.sources import sources
from jaxgen.data.streams import is_packed
from jaxgen.errors import DataError
from jaxgen.profile.chips import Chip
from jaxgen.run import forecast
from jaxgen.run.settings import Settings, build_settings

MINUTES = 10.0  # of training, about
EPOCHS = 20  # times that a text is seen at most
REPEATED = 5  # times from which on dropout is worth its price
TOKENS_PER_WEIGHT = 2
PIECES = 16
STEPS = (100, 1500, 50_000)  # the fewest, those that the batch is chosen for, the most
UTILISATION = 0.3  # of an accelerator's peak
PACKED = 3  # bytes of text in a byte of gzip
SHORTEST = 8  # context, of a text that has not one row of a longer one
TRAINED = 0.9  # part of a text that is left for training
PROMPT = 4  # words of the text that its samples go on from


class Vocabulary(NamedTuple):
    """The tokenizer of a text below so many bytes; pieces=0: bytes."""

    below: float
    pieces: int
    bytes_per_token: float


class Model(NamedTuple):
    """A size of a Llama, and the learning rate that Muon trains it with."""

    layers: int
    d_model: int
    context: int
    learning_rate: float

    @property
    def weights(self) -> int:
        """The weights of its layers."""
        return 12 * self.layers * self.d_model**2


VOCABULARIES = (
    Vocabulary(2e4, 0, 1.0),
    Vocabulary(3e5, 512, 2.0),
    Vocabulary(1e6, 1024, 2.5),
    Vocabulary(4e6, 2048, 3.0),
    Vocabulary(4e7, 4096, 3.5),
    Vocabulary(4e8, 8192, 4.0),
    Vocabulary(4e9, 16384, 4.3),
    Vocabulary(math.inf, 32768, 4.5),
)
MODELS = (
    Model(2, 64, 64, 5e-3),
    Model(4, 128, 128, 4e-3),
    Model(4, 192, 128, 3e-3),
    Model(6, 256, 256, 3e-3),
    Model(6, 384, 256, 2e-3),
    Model(8, 512, 512, 2e-3),
    Model(12, 768, 1024, 1e-3),
    Model(24, 1024, 1024, 6e-4),
)
HEAD = 64  # width of a head
MORE = "KEY=VALUE changes any, --minutes the time"
# What does not depend on sizes: the recipe of configs/quickstart.yaml.
LAYERS = {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none"}
TRAIN = {"optimizer": "muon", "schedule": "wsd", "decay": 0.4, "final_rate": 0.0, "beta2": 0.95}


@dataclass(frozen=True)
class Choice:
    """The config that was chosen for a text, as a mapping, and about how long it trains."""

    text_bytes: int
    mapping: dict[str, Any]
    minutes: float
    given: tuple[str, ...] = ()  # overrides, which win

    def __str__(self) -> str:
        model, train = self.mapping["model"], self.mapping["train"]
        pieces = self.mapping["tokenizer"].get("vocab_size")
        minutes = "under a minute" if self.minutes < 1 else f"about {self.minutes:.0f} min"
        return (
            f"chosen for {files.human(self.text_bytes)} of text and this machine ({minutes}): "
            f"{f'{pieces} pieces' if pieces else 'bytes'}, {model['layers']} layers of "
            f"{model['d_model']}, context {model['context']}, batch {train['batch']}, "
            f"{train['steps']} steps; "
            + (f"but as given: {' '.join(self.given)}" if self.given else MORE)
        )


def choose(text_bytes: int, chip: Chip, count: int, minutes: float = MINUTES) -> Choice:
    """Return the sizes for so much text on `count` devices like `chip`, in so many minutes."""
    vocabulary = next(row for row in VOCABULARIES if text_bytes < row.below)
    text_tokens = text_bytes / vocabulary.bytes_per_token
    rate = chip.flops * count * (1.0 if chip.platform == "cpu" else UTILISATION)
    found = None
    for model in MODELS:
        choice = _choice(model, vocabulary, text_tokens, rate, minutes, chip, count)
        enough = choice.seen >= TOKENS_PER_WEIGHT * model.weights and model.weights <= text_bytes
        if found is not None and not enough:
            break
        mapping = _fitted(choice.mapping, chip, count)
        if mapping is None and found is not None:
            break
        found = choice._replace(mapping=mapping or choice.mapping)
    assert found is not None
    return Choice(text_bytes, found.mapping, found.minutes)


class _Sized(NamedTuple):
    mapping: dict[str, Any]
    seen: float  # tokens that there is time for
    minutes: float


def _choice(
    model: Model,
    vocabulary: Vocabulary,
    text_tokens: float,
    rate: float,
    minutes: float,
    chip: Chip,
    count: int,
) -> _Sized:
    while model.context > SHORTEST and model.context >= TRAINED * text_tokens:
        model = model._replace(context=model.context // 2)
    pieces = min(vocabulary.pieces, PIECES * model.d_model)
    work = 6 * (model.weights + (pieces or 256) * model.d_model)  # FLOPs of a token
    seen = 60 * minutes * rate / work
    tokens = min(seen, EPOCHS * text_tokens)
    rows = 2 ** int(math.log2(max(tokens / STEPS[1] / model.context, 8)))
    # No more rows than the text has, and as many for each device.
    while rows > 8 and rows * model.context > text_tokens:
        rows //= 2
    rows = -(-rows // count) * count
    steps = round(tokens / rows / model.context, -1)
    steps = int(min(max(steps, STEPS[0]), STEPS[2]))
    each = max(-(-steps // 4), 10)  # the last is that of the end
    mapping: dict[str, Any] = {
        "model": {
            **LAYERS,
            "context": model.context,
            "layers": model.layers,
            "d_model": model.d_model,
            "heads": model.d_model // HEAD,
            "d_ff": 64 * round(model.d_model * 8 / 3 / 64),
            "dropout": 0.1 if tokens > REPEATED * text_tokens else 0.0,
            "compute_dtype": "float32" if chip.platform == "cpu" else "bfloat16",
        },
        "tokenizer": {"kind": "bpe", "vocab_size": pieces} if pieces else {"kind": "bytes"},
        "train": {
            **TRAIN,
            "steps": steps,
            "batch": rows,
            "learning_rate": model.learning_rate,
            "warmup": steps // 20,
            "validate_every": each,
        },
        "checkpoint": {"every": each},
    }
    return _Sized(mapping, seen, steps * rows * model.context * work / rate / 60)


def _fitted(mapping: dict[str, Any], chip: Chip, count: int) -> dict[str, Any] | None:
    """Return the config with the microbatches and remat that the memory wants; None if none do."""
    model, train = mapping["model"], mapping["train"]
    vocabulary = mapping["tokenizer"].get("vocab_size", 256)
    settings = build_settings(mapping | {"model": model | {"vocab_size": vocabulary}})
    plan: forecast.MemoryPlan | None = forecast.plan_memory(settings, chip, count)
    plan = plan if plan.fits else forecast.nearest(plan)
    if plan is None or plan.settings.model.context != model["context"]:
        return None
    if plan.settings is settings:
        return mapping
    remat, accumulate = plan.settings.model.remat, plan.settings.train.accumulate
    more = {"model": model | {"remat": remat}, "train": train | {"accumulate": accumulate}}
    return mapping | more


def with_pieces(settings: Settings, works: int) -> Settings:
    """Return the settings with a tokenizer that the text has, near the one that was chosen.

    works: the nearest size there is. The smallest has hardly more than characters: twice as many.
    """
    asked = settings.tokenizer.vocab_size
    size = works if works < asked else 2 * works
    return replace(settings, tokenizer=replace(settings.tokenizer, vocab_size=size))


def text_settings(
    names: Sequence[str], assignments: Sequence[str] = (), *, minutes: float = MINUTES
) -> tuple[Settings, Choice]:
    """Return the settings for files, folders or globs of text, and what was chosen for them.

    assignments: "section.key=value" overrides, which win. A section in which a kind is chosen
    (tokenizer.kind, model.preset) gives its chosen sizes up. Raises DataError for a name that
    matches nothing, or files that hold nothing.
    """
    choice = choose(text_bytes(names), *forecast.this_machine(), minutes)
    mapping = dict(choice.mapping)
    for section, word in (("tokenizer", "tokenizer.kind="), ("model", "model.preset=")):
        if any(one.startswith(word) for one in assignments):
            del mapping[section]
    mapping["data"] = {"files": list(names)}
    settings = build_settings(sets.override(mapping, assignments))
    given = any(one.startswith("sample.prompts") for one in assignments)
    if settings.objective.name == "causal" and not given and not settings.sample.prompts:
        sample = replace(settings.sample, prompts=prompts(settings.data, settings.model.context))
        settings = replace(settings, sample=sample)
    return settings, replace(choice, given=tuple(assignments))


def text_bytes(names: Sequence[str]) -> int:
    """Return the bytes of text that names match; DataError if there are none."""
    paths = [path for source in sources(names, ()) for path in source]
    size = 0
    for path in paths:
        with files.refusals(path):
            size += path.stat().st_size * (PACKED if is_packed(path) else 1)
    if not size:
        raise DataError(f"{', '.join(map(str, paths[:3]))}: empty; give files with text")
    return size


def prompts(settings: data.DataSettings, context: int) -> tuple[str, ...]:
    """Return how a text begins, for samples to go on from; it takes half of the context at most."""
    first = next(iter(data.documents(settings)), None)
    words = [] if first is None else first.text.split(maxsplit=PROMPT)[:PROMPT]
    # No tokenizer makes more tokens than bytes.
    prompt = " ".join(words).encode()[: context // 2].decode(errors="ignore").strip()
    return (prompt,) if prompt else ()

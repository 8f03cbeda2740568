"""Objectives from settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxgen.data.answers import answer_rows
from jaxgen.data.completions import completion_rows
from jaxgen.data.objectives import spans
from jaxgen.data.objectives.alphabet import Alphabet
from jaxgen.data.objectives.classes import class_rows
from jaxgen.data.objectives.masked import Masking
from jaxgen.data.objectives.settings import CHATS, PREFERENCES, RATES, ObjectiveSettings
from jaxgen.data.objectives.text import Denoise, Masked, Prefix, Recipe, Spans, TextRows
from jaxgen.data.pack import check_room
from jaxgen.data.pairs import pair_rows
from jaxgen.data.preferences import preference_rows
from jaxgen.data.prompts import prompt_rows
from jaxgen.data.rows import Maker, Rows, Windows, causal
from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError


def make_objective(settings: ObjectiveSettings, alphabet: Alphabet, towers: str) -> Maker:
    """Return the objective: a function from a shard to its rows.

    towers: the model's topology. Raises ConfigError if the tokenizer lacks an id that is needed.
    """
    fixed: dict[str, Maker] = {"causal": causal, "classes": class_rows}
    if settings.name in fixed:
        return fixed[settings.name]
    if settings.name in ("pairs", "spans") and alphabet.eos is None:
        raise ConfigError(
            f"the tokenizer declares no eos, with which a target of objective.name={settings.name} "
            f"ends; take another tokenizer.kind, or name tokenizer.eos"
        )
    if settings.name == "policy" and alphabet.eos is None:
        raise ConfigError(
            "the tokenizer declares no eos, with which a completion of objective.name=policy ends; "
            "take tokenizer.kind=bytes or bpe, or init_from"
        )
    if settings.name in CHATS:
        return _Completions(settings)
    if settings.name == "pairs":
        return (_Answers if towers == "decoder" else _Pairs)(settings, alphabet)
    return _Text(settings, alphabet, towers)


_TOO_WIDE = "objective.source={} and objective.target={} must not exceed model.context={}"


@dataclass(frozen=True, eq=False)
class _Pairs:
    settings: ObjectiveSettings
    alphabet: Alphabet

    def __call__(self, shard: TokenShard, *, context: int, seed: int, ordered: bool) -> Rows:
        alphabet, settings = self.alphabet, self.settings
        assert alphabet.eos is not None and alphabet.start is not None
        widths = (settings.source or context, settings.target or context)
        if max(widths) > context:
            raise ConfigError(_TOO_WIDE.format(*widths, context))
        return pair_rows(
            shard,
            widths=widths,
            seed=seed,
            start=alphabet.start,
            bos=alphabet.bos,
            eos=alphabet.eos,
        )


@dataclass(frozen=True, eq=False)
class _Answers:
    settings: ObjectiveSettings
    alphabet: Alphabet

    def __call__(self, shard: TokenShard, *, context: int, seed: int, ordered: bool) -> Rows:
        alphabet, settings = self.alphabet, self.settings
        most = (settings.source or context, settings.target or context)
        if max(most) > context:
            raise ConfigError(_TOO_WIDE.format(*most, context))
        trim = (int(alphabet.eos is not None), int(alphabet.bos is not None))
        return answer_rows(
            shard, width=context, most=most, trim=trim, seed=seed, name="pairs answers"
        )


@dataclass(frozen=True)
class _Completions:
    settings: ObjectiveSettings

    def __call__(self, shard: TokenShard, *, context: int, seed: int, ordered: bool) -> Rows:
        name, too_long = self.settings.name, self.settings.too_long
        if name in PREFERENCES:
            return preference_rows(shard, width=context, too_long=too_long, name=name)
        if name == "policy":
            completion = self.settings.completion(context)
            return prompt_rows(shard, width=context, completion=completion, too_long=too_long)
        return completion_rows(
            shard, width=context, too_long=too_long, seed=seed, name="completions"
        )


@dataclass(frozen=True, eq=False)
class _Text:
    settings: ObjectiveSettings
    alphabet: Alphabet
    towers: str

    def __call__(self, shard: TokenShard, *, context: int, seed: int, ordered: bool) -> Rows:
        check_room(shard, context, whole_row=True)
        width, recipe = RECIPES[self.settings.name](self, context)
        settings = self.settings
        name = f"{settings.name} {settings.rate} {settings.span} {settings.unit} {settings.start}"
        return TextRows(Windows(shard, width, seed), recipe, name)

    @property
    def rate(self) -> float:
        """The part of the tokens to guess."""
        return self.settings.rate or RATES[self.settings.name]


def _masked(text: _Text, context: int) -> tuple[int, Recipe]:
    alphabet = text.alphabet
    assert alphabet.mask is not None
    masking = Masking(text.rate, text.settings.unit, alphabet.mask, alphabet.size)
    return context, Masked(masking, alphabet)


def _prefix(text: _Text, context: int) -> tuple[int, Recipe]:
    assert text.alphabet.start is not None
    return context, Prefix(text.towers, text.alphabet.start)


def _spans(text: _Text, context: int) -> tuple[int, Recipe]:
    rate, span, sentinels = text.rate, text.settings.span, len(text.alphabet.sentinels)
    width, target = spans.lengths(context, rate, span)
    count = spans.counts(width, rate, span)[1]
    if count > sentinels or target > context or context < 8:
        raise ConfigError(
            f"model.context={context} with objective.rate={rate} and objective.span={span} makes "
            f"{count} spans and a target of {target} tokens; at most {sentinels} spans, {context} "
            f"tokens and at least a context of 8 work"
        )
    return width, Spans(rate, span, text.alphabet)


def _denoise(text: _Text, context: int) -> tuple[int, Recipe]:
    return context, Denoise(text.rate, text.settings.span, text.alphabet)


RECIPES: dict[str, Callable[[_Text, int], tuple[int, Recipe]]] = {
    "masked": _masked,
    "prefix": _prefix,
    "spans": _spans,
    "denoise": _denoise,
}

"""How a text is generated: all settings of one request, checked before anything is compiled.

The command line, a line of a JSONL file and Python share these names; `text.processors` turns them
into a chain of processors, `text.programs` decodes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError

Strategy = Literal["draw", "beams", "contrastive", "speculate"]
Until = Literal["full", "likely", "certain"]
Pick = Literal["best", "draw"]
EARLY_STOPPING: dict[Until, bool | Literal["never"]]
EARLY_STOPPING = {"full": True, "likely": False, "certain": "never"}
Layers = Literal["low", "high"]
Rule = tuple[Callable[[Any], bool], str]  # what a value may be, and the same in words

TEMPERATURE = 0.8  # of a drawn text that asks for none
DRAFTED = 4  # tokens that a draft guesses at once
SEEDS = 2**64
GROUPS = (
    *("Length and end", "Drawing", "Repetition", "Words", "Structure", "Beams"),
    *("Other strategies", "Watermark", "Output"),
)


def knob(group: str, text: str, default: Any = None) -> Any:
    """Return a field with its default, the sentence that documents it, and its group."""
    assert group in GROUPS
    return dataclasses.field(default=default, metadata={"help": text, "group": group})


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Generation:
    """Settings of a request; None is off. Raises ConfigError out of range or for contradictions."""

    max_new_tokens: int | None = knob(
        "Length and end", "tokens to make; at most 128 if the context has room"
    )
    min_new_tokens: int | None = knob("Length and end", "make so many before the text may end")
    max_length: int | None = knob(
        "Length and end", "tokens to make, the prompt's among them; --max-new-tokens wins"
    )
    min_length: int | None = knob("Length and end", "as --min-new-tokens, the prompt's among them")
    stop: tuple[str, ...] = knob("Length and end", "end before this text; may be repeated", ())
    stop_ids: tuple[int, ...] = knob(
        "Length and end", "end with this token id, too; repeatable", ()
    )
    max_seconds: float | None = knob("Length and end", "end when this time is over")
    decay_start: int | None = knob(
        "Length and end", "new tokens after which the end grows likelier"
    )
    decay_factor: float | None = knob("Length and end", "by what power a token it grows")
    temperature: float | None = knob(
        "Drawing", f"0 takes the likeliest token; default {TEMPERATURE} where tokens are drawn"
    )
    top_k: int | None = knob("Drawing", "draw from the k likeliest tokens")
    top_p: float | None = knob("Drawing", "draw from the likeliest tokens of this probability")
    top_h: float | None = knob("Drawing", "draw from the likeliest that hold this share of entropy")
    min_p: float | None = knob("Drawing", "drop what is so much less likely than the likeliest")
    typical: float | None = knob("Drawing", "draw from the most typical of this probability")
    epsilon: float | None = knob("Drawing", "drop tokens less likely than this")
    eta: float | None = knob("Drawing", "the same with a cutoff that falls with entropy")
    top_n_sigma: float | None = knob("Drawing", "keep logits so many deviations below the largest")
    seed: int = knob("Drawing", "the same seed gives the same text", 0)
    samples: int = knob("Drawing", "completions of each prompt", 1)
    best_of: int | None = knob("Drawing", "draw so many, keep the likeliest --samples of them")
    repetition_penalty: float | None = knob("Repetition", "above 1 makes known tokens less likely")
    presence_penalty: float | None = knob("Repetition", "subtracted once from what was drawn")
    frequency_penalty: float | None = knob("Repetition", "subtracted for each time it was drawn")
    no_repeat_ngram: int | None = knob("Repetition", "let no n-gram of this size occur twice")
    source_penalty: float | None = knob("Repetition", "above 1 favours tokens of the prompt")
    no_repeat_source: int | None = knob("Repetition", "copy no n-gram of this size of the prompt")
    bad_words: tuple[str, ...] = knob("Words", "never write this; may be repeated", ())
    force_words: tuple[str, ...] = knob(
        "Words", "write this somewhere, or one of A|B; needs --beams; may be repeated", ()
    )
    bias: tuple[str, ...] = knob("Words", "TEXT=NUMBER: added to its logit; may be repeated", ())
    bad_words_ids: tuple[str, ...] = knob(
        "Words", "never make these token ids in a row, as in 5,17; may be repeated", ()
    )
    suppress_ids: tuple[int, ...] = knob("Words", "never draw this token id; may be repeated", ())
    suppress_first_ids: tuple[int, ...] = knob(
        "Words", "never begin with this token id (after --force-first); may be repeated", ()
    )
    force_first: tuple[int, ...] = knob("Words", "begin with this token id; more: one of them", ())
    force_last: tuple[int, ...] = knob(
        "Words", "end with this token id at the limit of tokens; more: one of them", ()
    )
    regex: str | None = knob("Structure", "the text matches this regular expression")
    json_schema: str | None = knob("Structure", "the text is JSON of this schema; @FILE reads it")
    choices: tuple[str, ...] = knob("Structure", "the text is this, or another choice", ())
    beams: int | None = knob("Beams", "search with so many beams instead of drawing")
    n_best: int | None = knob("Beams", "return so many of the beams")
    length_penalty: float | None = knob("Beams", "above 0 favours long texts; default 1")
    until: Until | None = knob("Beams", "when a search ends; default likely")
    groups: int | None = knob("Beams", "beams search in so many groups that differ")
    diversity: float | None = knob("Beams", "what a group pays for a token of an earlier one")
    pick: Pick | None = knob("Beams", "keep the best beams, or draw them; default best")
    contrastive: float | None = knob(
        "Other strategies", "contrastive search with this penalty, over --top-k candidates"
    )
    dola: Layers | None = knob("Other strategies", "contrast with the low or the high layers")
    guidance: float | None = knob("Other strategies", "away from --negative-prompt by this scale")
    negative_prompt: str | None = knob(
        "Other strategies", "what --guidance steers away from; default: no prompt"
    )
    lookup: int | None = knob("Other strategies", "guess so many tokens from the text itself")
    draft: str | None = knob("Other strategies", "a smaller run that guesses tokens")
    draft_tokens: int | None = knob("Other strategies", f"at once; default {DRAFTED}")
    watermark: int | None = knob("Watermark", "mark the text with this secret number")
    watermark_ratio: float | None = knob("Watermark", "share of tokens that is raised; default .25")
    watermark_bias: float | None = knob("Watermark", "by how much; default 2")
    watermark_width: int | None = knob("Watermark", "earlier tokens that choose them; default 1")
    top_logprobs: int | None = knob("Output", "alternatives of each token, with --json")

    def __post_init__(self) -> None:
        for name, (allowed, rule) in RANGES.items():
            _check_range(name, getattr(self, name), allowed, rule)
        for name, empty in ((n, v) for n in TEXTS for v in self.listed(n) if not v):
            raise ConfigError(f"{name}={empty!r} is empty; give at least one character")
        for one, other, remedy in CONFLICTS:
            if self.gives(one) and self.gives(other):
                raise ConfigError(
                    f"{self.told(one)} and {self.told(other)} exclude each other; {remedy}"
                )
        for one, other in NEEDS:
            if self.gives(one) and not self.gives(other):
                raise ConfigError(f"{self.told(one)} has no effect without {other}; give {other}")
        self._check_sizes()
        self._check_drawing()

    @property
    def strategy(self) -> Strategy:
        """Return which loop decodes the request."""
        if self.beams is not None:
            return "beams"
        if self.contrastive is not None:
            return "contrastive"
        return "draw" if self.lookup is None and self.draft is None else "speculate"

    @property
    def draws(self) -> bool:
        """Return whether chance takes part."""
        by_strategy = {"beams": self.pick == "draw", "contrastive": False}
        return by_strategy.get(self.strategy, self.sampling_temperature != 0)

    @property
    def sampling_temperature(self) -> float:
        """Return the temperature of a request whose tokens are drawn."""
        return TEMPERATURE if self.temperature is None else self.temperature

    def gives(self, name: str) -> bool:
        """Return whether a setting is other than its default."""
        return getattr(self, name) != DEFAULTS[name]

    def told(self, name: str) -> str:
        """Return name=value, as messages show it."""
        value = getattr(self, name)
        return f"{name}={value[0] if isinstance(value, tuple) and value else value}"

    @property
    def draws_each(self) -> int:
        """Return how many texts are drawn of a prompt."""
        return self.best_of or self.samples

    def listed(self, name: str) -> tuple[str, ...]:
        """Return the texts of a setting that is a text, several, or none."""
        value = getattr(self, name)
        return () if value is None else value if isinstance(value, tuple) else (value,)

    def _check_sizes(self) -> None:
        for less, more in AT_MOST:
            small, large = getattr(self, less), getattr(self, more)
            if small is not None and large is not None and small > large:
                raise ConfigError(f"{less}={small} is more than {more}={large}")
        if self.beams and self.groups and self.beams % self.groups:
            raise ConfigError(f"beams={self.beams} is not a multiple of groups={self.groups}")

    def _check_drawing(self) -> None:
        """Refuse what shapes draws where nothing is drawn."""
        if self.beams is not None and not self.draws:
            for name in filter(self.gives, DRAWING):
                raise ConfigError(
                    f"{self.told(name)} has no effect on beams={self.beams}, which keep the best; "
                    f"drop it, or give pick=draw"
                )
        if self.contrastive is not None:
            for name in filter(self.gives, set(DRAWING) - {"top_k"}):
                raise ConfigError(
                    f"{self.told(name)} has no effect on contrastive={self.contrastive}, which "
                    f"draws nothing; drop one"
                )
        wanted = "best_of" if self.best_of is not None else "samples"
        if not self.draws and (getattr(self, wanted) or 1) > 1:
            raise ConfigError(
                f"{self.told(wanted)} and temperature=0 exclude each other: all would be the same"
            )


def _number(low: float, high: float, ends: str, rule: str) -> Rule:
    """A number between two; `ends` says which of them may be reached, as in "[)"."""

    def allowed(x: Any) -> bool:
        return (low <= x if ends[0] == "[" else low < x) and (
            x <= high if ends[1] == "]" else x < high
        )

    return allowed, rule


def _least(number: int) -> Rule:
    return (lambda x: x >= number), f"at least {number}"


_FINITE = (math.isfinite, "a finite number")
_POSITIVE = _number(0.0, math.inf, "()", "greater than 0")
_SHARE = _number(0.0, 1.0, "(]", "greater than 0 and at most 1")
_CUTOFF = _number(0.0, 1.0, "[)", "0 or more and less than 1")
_UNIT = _number(0.0, 1.0, "[]", "from 0 to 1")
RANGES: dict[str, Rule] = {
    **dict.fromkeys(("max_new_tokens", "max_length", "samples", "beams", "n_best"), _least(1)),
    **dict.fromkeys(("lookup", "draft_tokens", "watermark_width", "best_of", "groups"), _least(1)),
    **dict.fromkeys(("min_new_tokens", "min_length", "decay_start", "top_logprobs"), _least(0)),
    **dict.fromkeys(("no_repeat_ngram", "no_repeat_source"), _least(1)),
    **dict.fromkeys(("stop_ids", "suppress_ids", "suppress_first_ids"), _least(0)),
    **dict.fromkeys(("force_first", "force_last"), _least(0)),
    "top_k": (lambda x: x >= 1, "at least 1; leave it out for no limit"),
    "temperature": _number(0.0, math.inf, "[)", "0 (greedy) or more"),
    "max_seconds": _POSITIVE,
    "decay_factor": _POSITIVE,
    "repetition_penalty": _POSITIVE,
    "source_penalty": _POSITIVE,
    "top_n_sigma": _POSITIVE,
    **dict.fromkeys(("top_p", "top_h", "typical"), _SHARE),
    **dict.fromkeys(("epsilon", "eta"), _CUTOFF),
    **dict.fromkeys(("min_p", "contrastive"), _UNIT),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "watermark_bias"), _FINITE),
    **dict.fromkeys(("length_penalty", "guidance"), _FINITE),
    "diversity": _POSITIVE,
    "watermark_ratio": _number(0.0, 1.0, "()", "between 0 and 1"),
    "watermark": _number(0.0, 2.0**32, "[)", "at least 0 and less than 2^32"),
    "seed": _number(0.0, float(SEEDS), "[)", "at least 0 and less than 2^64"),
}
TEXTS = (
    "stop",
    "bad_words",
    "bad_words_ids",
    "force_words",
    "regex",
    "json_schema",
    "choices",
    "draft",
)
DRAWING = (
    *("temperature", "top_k", "top_p", "top_h", "min_p", "typical", "epsilon", "eta"),
    "top_n_sigma",
)
CHANCE = (*DRAWING, "samples", "best_of")  # what only a request for drawn texts gives
_ONE_WAY = "there is one way to decode"
_WHOLE = "only drawn texts are made in pieces"
CONFLICTS = (
    *((a, b, _ONE_WAY) for a, b in (
        ("beams", "contrastive"), ("beams", "lookup"), ("beams", "draft"),
        ("contrastive", "lookup"), ("contrastive", "draft"), ("lookup", "draft"),
        ("dola", "guidance"), ("dola", "contrastive"), ("guidance", "contrastive"),
        ("dola", "lookup"), ("dola", "draft"), ("guidance", "lookup"), ("guidance", "draft"),
    )),
    ("samples", "beams", "give n_best"),
    ("best_of", "beams", "give n_best"),
    ("samples", "contrastive", "it has one result"),
    ("best_of", "contrastive", "it has one result"),
    *(("max_seconds", other, _WHOLE) for other in ("beams", "contrastive", "lookup", "draft")),
    ("regex", "json_schema", "give one structure"),
    ("regex", "choices", "give one structure"),
    ("json_schema", "choices", "give one structure"),
    ("force_words", "groups", "only plain beams bring words in"),
    ("force_words", "pick", "only plain beams bring words in"),
)  # fmt: skip
NEEDS = (
    *((name, "beams") for name in (
        "n_best", "length_penalty", "until", "groups", "diversity", "pick", "force_words",
    )),
    ("diversity", "groups"),
    ("groups", "diversity"),
    ("contrastive", "top_k"),
    ("negative_prompt", "guidance"),
    ("draft_tokens", "draft"),
    ("decay_start", "decay_factor"),
    ("decay_factor", "decay_start"),
    *((name, "watermark") for name in ("watermark_ratio", "watermark_bias", "watermark_width")),
)  # fmt: skip
AT_MOST = (
    ("min_new_tokens", "max_new_tokens"),
    ("min_length", "max_length"),
    ("n_best", "beams"),
    ("samples", "best_of"),
)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Generation)}


def _check_range(name: str, value: Any, allowed: Callable[[Any], bool], rule: str) -> None:
    for one in value if isinstance(value, tuple) else (value,):
        if one is not None and not allowed(one):
            raise ConfigError(f"{name}={one} must be {rule}")

"""How a text is generated: all settings of one request, checked before anything is compiled.

The command line, a line of a JSONL file and Python share these names; `text.processors` turns them
into a chain of processors, `text.programs` decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.arguments import Call, Range, above, at_least, between
from jaxgen.errors import ConfigError

Strategy = Literal["draw", "beams", "contrastive", "speculate"]
Overflow = Literal["refuse", "cut", "slide"]
Rule = Callable[[str, Any, Call], None]

TEMPERATURE = 0.8  # of a sampled text that asks for none
DRAFTED = 4  # tokens that a draft guesses at once
SEEDS = 2**64
GROUPS = (
    *("Length and end", "Drawing", "Repetition", "Words", "Structure", "Beams"),
    *("Other strategies", "Watermark", "Output"),
)


def knob(group: str, text: str, rule: Rule | None = None, default: Any = None) -> Any:
    """Return a field with its default, the sentence that documents it, its group and its range."""
    assert group in GROUPS
    about = {"help": text, "group": group, "rule": rule}
    return dataclasses.field(default=default, metadata=about)


def filled(name: str, value: Any, call: Call) -> None:
    """Raise ConfigError for an empty text."""
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise ConfigError(f"{name}='' is empty; give at least one character")


MOST = 2**30  # of what is counted: it has to be an int32
COUNT, INDEX, POSITIVE, FINITE = between(1, MOST), between(0, MOST), above(0), Range()
SHARE, CUTOFF = Range(0.0, 1.0, above=True), Range(0.0, 1.0, below=True)
_length, _draw, _repeat, _words, _structure, _beams, _other, _mark, _output = (
    partial(knob, group) for group in GROUPS
)


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Generation:
    """Settings of a request; None is off. Raises ConfigError out of range or for contradictions."""

    max_new_tokens: int | None = _length(
        "tokens to make; at most 128 if the context has room", COUNT
    )
    min_new_tokens: int | None = _length("make so many before the text may end", INDEX)
    max_length: int | None = _length("tokens of prompt and text; --max-new-tokens wins", COUNT)
    min_length: int | None = _length("as --min-new-tokens, the prompt's among them", INDEX)
    overflow: Overflow = _length(
        "what exceeds the context: refuse it; cut the beginning of a prompt (the end of a source); "
        "slide: go on from the last half of a context that is full",
        None,
        "refuse",
    )
    stop: tuple[str, ...] = _length("end before this text; may be repeated", filled, ())
    stop_ids: tuple[int, ...] = _length("end with this token id, too; repeatable", INDEX, ())
    max_seconds: float | None = _length("end after so many seconds", POSITIVE)
    decay_start: int | None = _length("new tokens after which the end grows likelier", INDEX)
    decay_factor: float | None = _length("by what power a token it grows", POSITIVE)
    temperature: float | None = _draw(
        f"0 takes the likeliest token; default {TEMPERATURE}", at_least(0, note="0 is greedy")
    )
    top_k: int | None = _draw(
        "sample from the k likeliest tokens", between(1, MOST, note="leave it out for no limit")
    )
    top_p: float | None = _draw("sample from the likeliest tokens of this probability", SHARE)
    top_h: float | None = _draw("sample from the likeliest with this share of entropy", SHARE)
    min_p: float | None = _draw("drop tokens below P times the top probability", between(0, 1))
    typical: float | None = _draw("sample from the most typical of this probability", SHARE)
    epsilon: float | None = _draw("drop tokens less likely than this", CUTOFF)
    eta: float | None = _draw("the same with a cutoff that falls with entropy", CUTOFF)
    top_n_sigma: float | None = _draw("keep logits this many deviations below the top", POSITIVE)
    do_sample: bool | None = _draw("sample, or take the likeliest token; beams sample if asked")
    seed: int = _draw("the same seed gives the same text", Range(0, SEEDS, below=True), 0)
    samples: int = _draw("completions of each prompt", COUNT, 1)
    best_of: int | None = _draw("sample so many, keep the likeliest --samples of them", COUNT)
    repetition_penalty: float | None = _repeat("above 1: known tokens are less likely", POSITIVE)
    presence_penalty: float | None = _repeat("subtracted once from tokens of the text", FINITE)
    frequency_penalty: float | None = _repeat("subtracted each time a token was made", FINITE)
    no_repeat_ngram: int | None = _repeat("let no n-gram of this size occur twice", COUNT)
    source_penalty: float | None = _repeat("above 1 favours tokens of the prompt", POSITIVE)
    no_repeat_source: int | None = _repeat("copy no n-gram of this size of the prompt", COUNT)
    bad_words: tuple[str, ...] = _words("never write this; may be repeated", filled, ())
    force_words: tuple[str, ...] = _words(
        "write this somewhere, or one of A|B; needs --beams; may be repeated", filled, ()
    )
    policy: str | None = _words("a YAML file of what texts may not hold", filled)
    bias: tuple[str, ...] = _words("TEXT=NUMBER: added to its logit; may be repeated", None, ())
    bias_ids: tuple[str, ...] = _words(
        "the same of a token id, as in 17=-2.5; repeatable", None, ()
    )
    bad_words_ids: tuple[str, ...] = _words(
        "never make these token ids in a row, as in 5,17; may be repeated", filled, ()
    )
    suppress_ids: tuple[int, ...] = _words("never make this token id; may be repeated", INDEX, ())
    suppress_first_ids: tuple[int, ...] = _words(
        "never begin with this token id (after --force-first); may be repeated", INDEX, ()
    )
    force_first: tuple[int, ...] = _words("begin with this token id; more: one of them", INDEX, ())
    force_last: tuple[int, ...] = _words(
        "end with this token id at the limit of tokens; more: one of them", INDEX, ()
    )
    regex: str | None = _structure("the text matches this regular expression", filled)
    json_schema: str | None = _structure("the text is JSON of this schema; @FILE reads it", filled)
    choices: tuple[str, ...] = _structure("the text is this, or another choice", filled, ())
    beams: int | None = _beams("search with so many beams instead of sampling", COUNT)
    n_best: int | None = _beams("return so many of the beams", COUNT)
    length_penalty: float | None = _beams("above 0 favours long texts; default 1", FINITE)
    early_stopping: bool | Literal["never"] | None = _beams(
        "end with as many texts as beams; never: when no longer text can be better"
    )
    renormalize: bool | None = _beams("penalised probabilities of a beam sum to one again")
    groups: int | None = _beams("beams search in so many groups that differ", COUNT)
    diversity: float | None = _beams("penalty of a token that an earlier group chose", POSITIVE)
    contrastive: float | None = _other(
        "contrastive search with this penalty, over --top-k candidates", between(0, 1)
    )
    dola: Literal["low", "high"] | None = _other("contrast with the low or the high layers")
    guidance: float | None = _other("away from --negative-prompt by this scale", FINITE)
    debias: float | None = _other(
        "lower what --negative-prompt, before the prompt, makes likelier: 10 to 100", POSITIVE
    )
    negative_prompt: str | None = _other("what --guidance or --debias steers away from")
    lookup: int | None = _other("guess so many tokens from the text itself", COUNT)
    draft: str | None = _other("a smaller run that guesses tokens", filled)
    draft_tokens: int | None = _other(f"at once; default {DRAFTED}", COUNT)
    watermark: int | None = _mark(
        "mark the text with this secret number", Range(0, 2**32, below=True)
    )
    watermark_ratio: float | None = _mark(
        "share of tokens that is raised; default .25", Range(0, 1, above=True, below=True)
    )
    watermark_bias: float | None = _mark("by how much; default 2", FINITE)
    watermark_width: int | None = _mark("earlier tokens that choose them; default 1", COUNT)
    top_logprobs: int | None = _output("alternatives of each token, with --json", INDEX)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            rule, value = field.metadata["rule"], getattr(self, field.name)
            if rule is not None and value not in (None, ()):
                rule(field.name, value, Call({}))
        for one, other, remedy in CONFLICTS:
            if self.gives(one) and self.gives(other):
                raise ConfigError(
                    f"{self.describe(one)} and {self.describe(other)} exclude each other; {remedy}"
                )
        for one, other in NEEDS:
            if self.gives(one) and not self.gives(other):
                raise ConfigError(
                    f"{self.describe(one)} has no effect without {other}; give {other}"
                )
        if self.negative_prompt is not None and self.steered is None:
            raise ConfigError(
                f"negative_prompt={self.negative_prompt} has no effect without guidance=1.5, say, "
                f"or debias=50"
            )
        for other in UNSLID if self.overflow == "slide" else ():
            if self.gives(other):
                raise ConfigError(
                    f"overflow=slide and {self.describe(other)} exclude each other; drop one"
                )
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
    def steered(self) -> Literal["guidance", "debias"] | None:
        """Return what steers the text away from another prompt."""
        return "guidance" if self.guidance is not None else "debias" if self.debias else None

    @property
    def draws(self) -> bool:
        """Return whether chance takes part."""
        by_strategy = {"beams": self.do_sample is True, "contrastive": False}
        return by_strategy.get(self.strategy, self.sampling_temperature != 0)

    @property
    def sampling_temperature(self) -> float:
        """Return the temperature of a request without beams, 0 of the likeliest tokens."""
        if self.do_sample is False:
            return 0.0
        return TEMPERATURE if self.temperature is None else self.temperature

    def gives(self, name: str) -> bool:
        """Return whether a setting is other than its default."""
        return getattr(self, name) != DEFAULTS[name]

    def describe(self, name: str) -> str:
        """Return name=value, as messages show it."""
        value = getattr(self, name)
        return f"{name}={value[0] if isinstance(value, tuple) and value else value}"

    @property
    def draws_each(self) -> int:
        """Return how many texts are drawn of a prompt."""
        return self.best_of or self.samples

    def _check_sizes(self) -> None:
        for less, more in AT_MOST:
            small, large = getattr(self, less), getattr(self, more)
            if small is not None and large is not None and small > large:
                raise ConfigError(f"{less}={small} is more than {more}={large}")
        if self.force_words and self.do_sample:
            raise ConfigError("force_words and do_sample=True exclude each other; drop one")
        if self.beams and self.groups and self.beams % self.groups:
            raise ConfigError(f"beams={self.beams} is not a multiple of groups={self.groups}")

    def _check_drawing(self) -> None:
        """Refuse what shapes draws where nothing is drawn."""
        if self.temperature == 0 and self.do_sample:
            raise ConfigError("temperature=0 and do_sample=True exclude each other; drop one")
        why, shaping = None, set(DRAWING)
        if self.beams is not None and not self.draws:
            why = f"beams={self.beams}, which keep the best; drop it, or give do_sample=true"
        elif self.contrastive is not None:
            why = f"contrastive={self.contrastive}, which draws nothing; drop one"
            shaping = shaping - {"top_k"} | ({"do_sample"} if self.do_sample else set())
        elif self.do_sample is False:
            why = "a text with do_sample=False; drop one"
        for name in (name for name in vars(self) if why and name in shaping and self.gives(name)):
            raise ConfigError(f"{self.describe(name)} has no effect on {why}")
        wanted = "best_of" if self.best_of is not None else "samples"
        if not self.draws and (getattr(self, wanted) or 1) > 1:
            said = f"{self.describe(wanted)} and temperature=0 exclude each other"
            raise ConfigError(f"{said}: all would be the same")


DRAWING = (
    *("temperature", "top_k", "top_p", "top_h", "min_p", "typical", "epsilon", "eta"),
    "top_n_sigma",
)
# These need the whole text's cache.
UNSLID = ("beams", "contrastive", "lookup", "draft", "guidance", "debias")
CHANCE = (*DRAWING, "samples", "best_of")  # what only a request for drawn texts gives
_ONE_WAY = "there is one way to decode"
_WHOLE = "only drawn texts are made in pieces"
CONFLICTS = (
    *((a, b, _ONE_WAY) for a, b in (
        ("beams", "contrastive"), ("beams", "lookup"), ("beams", "draft"),
        ("contrastive", "lookup"), ("contrastive", "draft"), ("lookup", "draft"),
        ("dola", "guidance"), ("dola", "contrastive"), ("guidance", "contrastive"),
        ("dola", "lookup"), ("dola", "draft"), ("guidance", "lookup"), ("guidance", "draft"),
        *(("debias", other) for other in ("guidance", "dola", "contrastive", "lookup", "draft")),
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
)  # fmt: skip
NEEDS = (
    *((name, "beams") for name in (
        "n_best", "length_penalty", "early_stopping", "renormalize", "groups", "diversity",
        "force_words",
    )),
    ("diversity", "groups"),
    ("groups", "diversity"),
    ("contrastive", "top_k"),
    ("debias", "negative_prompt"),
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

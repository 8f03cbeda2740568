"""What a model learns to predict: the knobs of the `objective` section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgen import arguments
from jaxgen.data.completions import TooLong
from jaxgen.data.settings import Form
from jaxgen.errors import ConfigError
from jaxgen.settings import changed, option

Name = Literal[
    "causal", "prefix", "masked", "spans", "denoise", "pairs", "chat", "classes", "preferences",
    "feedback", "rewards", "policy",
]  # fmt: skip
# Where a knob does something, and what null means there.
RATES = {"masked": 0.15, "spans": 0.15, "denoise": 0.3}
STARTED = ("prefix", "spans", "denoise", "pairs")
PREFERENCES = ("preferences", "feedback", "rewards")  # whose rows hold two texts each
CHATS = ("chat", *PREFERENCES, "policy")  # whose records may be chats
FORMS: dict[str, Form] = {
    "pairs": "pairs",
    "classes": "classes",
    "chat": "messages",
    "feedback": "feedback",
    "preferences": "preferences",
    "rewards": "preferences",
    "policy": "prompts",
}
TOWERS: dict[str, tuple[str, ...]] = {
    "causal": ("decoder",),
    "prefix": ("decoder", "encoder_decoder"),
    "masked": ("encoder",),
    "spans": ("encoder_decoder",),
    "denoise": ("encoder_decoder",),
    "pairs": ("encoder_decoder", "decoder"),
    "chat": ("decoder",),
    "classes": ("decoder", "encoder"),
    **dict.fromkeys((*PREFERENCES, "policy"), ("decoder",)),
}


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """How rows are made of text; raises ConfigError for a knob without effect."""

    name: Name = option(
        "causal: the next token; prefix: that of the second part; masked: BERT; spans: T5; "
        "denoise: BART; pairs: target from source; chat: the assistant's turns; "
        "classes: label from text; preferences: chosen above rejected (preference.loss); "
        "feedback: completions liked or not (KTO); rewards: a reward model of pairs; policy: its "
        "own completions, rewarded (GRPO, policy.reward)",
        "causal",
    )
    source: int | None = option(
        "pairs: most tokens of a source; null: model.context",
        None,
    )
    target: int | None = option(
        "pairs: most tokens of a target; null: model.context; policy: of a completion; null: half "
        "of it",
        None,
    )
    too_long: TooLong = option(
        "chat, preferences, feedback, rewards: a text longer than model.context loses its end, is "
        "left out, or ends the run; policy: a prompt is left out, or ends the run",
        "cut",
    )
    rate: float | None = option(
        "part of the tokens to guess; null: 0.15 for masked and spans, 0.3 for denoise", None
    )
    span: float = option("spans, denoise: mean tokens of a span", 3.0)
    unit: Literal["tokens", "words"] = option("masked: what is chosen and masked as one", "tokens")
    start: int | None = option("id that a decoder begins with; null: bos, or else pad or eos", None)
    template: Path | None = option(
        "chat, preferences, ...: a Jinja file that lays messages; null: that of init_from, else a "
        "plain one",
        None,
    )
    labels: tuple[str, ...] = option("classes: their names; none: those of the training text", ())

    def __post_init__(self) -> None:
        self._check_effect("source", self.name == "pairs")
        self._check_effect("target", self.name in ("pairs", "policy"))
        self._check_effect("too_long", self.name in CHATS)
        self._check_effect("rate", self.name in RATES)
        self._check_effect("span", self.name in ("spans", "denoise"))
        self._check_effect("unit", self.name == "masked")
        self._check_effect("start", self.name in STARTED)
        self._check_effect("template", self.name in CHATS)
        self._check_effect("labels", self.name == "classes")
        for name in ("source", "target"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"{name}={value} must be at least 2, or null")
        if self.rate is not None and not 0 < self.rate < 1:
            raise ConfigError(f"rate={self.rate} must be greater than 0 and less than 1")
        if not self.span >= 1:
            raise ConfigError(f"span={self.span} must be at least 1")
        if self.start is not None and self.start < 0:
            raise ConfigError(f"start={self.start} must be a token id, or null")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ConfigError(f"labels={list(self.labels)} must be two or more different names")

    def _check_effect(self, name: str, used: bool) -> None:
        if not used and name in changed(self):
            value = getattr(self, name)
            raise ConfigError(f"{name}={value!r} has no effect with name={self.name}; remove it")

    @property
    def form(self) -> Form:
        """The form of the records that this objective reads."""
        return FORMS.get(self.name, "text")

    def completion(self, context: int) -> int:
        """Return the most tokens of a completion; ConfigError if a context leaves it no prompt."""
        size = self.target or max(context // 2, 1)
        if size >= context:
            raise ConfigError(
                f"objective.target={size} leaves no room for a prompt in model.context={context}; "
                f"give a smaller one"
            )
        return size

    def starts(self, topology: str) -> bool:
        """Return whether a decoder begins with an id of its own (`start`)."""
        return self.name in STARTED and (self.name, topology) != ("pairs", "decoder")

    def check_model(self, topology: str, head: str) -> None:
        """Raise ConfigError for a model that can't learn this."""
        if topology not in TOWERS[self.name]:
            raise ConfigError(
                f"objective.name={self.name} needs model.topology="
                f"{' or '.join(TOWERS[self.name])}, not {topology}"
            )
        if self.start is not None and self.name in STARTED and not self.starts(topology):
            raise ConfigError(
                f"objective.start={self.start} has no effect: a decoder begins with the source; "
                f"remove it"
            )
        heads = {"masked": ("mlm", "lm")}.get(self.name, ("lm",))
        heads = ("classes",) if self.name in ("classes", "rewards") else heads
        if head not in heads:
            raise ConfigError(
                f"objective.name={self.name} needs model.head={' or '.join(heads)}, not {head}"
            )

"""How text is sampled when a run shows what it has learned."""

from __future__ import annotations

from dataclasses import dataclass

from jaxgen.errors import ConfigError
from jaxgen.settings import option


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Prompts and sampling of the texts shown at each validation."""

    prompts: tuple[str, ...] = option(
        "texts to go on from, rewrite, classify or (at <mask>) fill in; none: no samples", ()
    )
    examples: int = option("objective.name=pairs: so many sources of the validation text", 0)
    max_new_tokens: int = option("new tokens per prompt; the context may leave fewer", 64)
    temperature: float = option("0 is greedy", 0.8)
    top_k: int | None = option("keep the k likeliest tokens", None)
    top_p: float | None = option("keep the smallest set of this probability", 0.95)

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError(f"examples={self.examples} must be 0 or more")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1, or null")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be greater than 0 and at most 1, or null")
        if any(not prompt for prompt in self.prompts):
            raise ConfigError("prompts holds an empty prompt; remove it")

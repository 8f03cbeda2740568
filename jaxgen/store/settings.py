"""How often a run is saved, and what is kept: the knobs of the `checkpoint` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import option


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When to save and what to keep; raises ConfigError naming the field at fault."""

    every: int = option("steps between saves", 200)
    keep_last: int = option("newest checkpoints that are kept", 2)
    keep_best: int = option("checkpoints of the lowest validation loss that are kept too", 1)
    verify: Literal["full", "off"] = option(
        "full: compare every byte with its sha256 when restoring; off: only names and sizes", "full"
    )

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("keep_last", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")

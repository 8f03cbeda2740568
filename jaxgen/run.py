"""A run: model, tokenizer, data, training and checkpoints of one config in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgen import settings as sets
from jaxgen import settings_yaml
from jaxgen.config import ModelConfig
from jaxgen.data.settings import DataSettings
from jaxgen.models import presets
from jaxgen.store.settings import CheckpointSettings
from jaxgen.text.settings import SampleSettings
from jaxgen.tokens.settings import TokenizerSettings
from jaxgen.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of a config file; `model.preset` is resolved before it gets here."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)


def read_settings(config: Path, assignments: Sequence[str] = ()) -> Settings:
    """Return the Settings of a YAML file with "section.key=value" overrides; ConfigError if bad."""
    return build_settings(sets.override(settings_yaml.read(config), assignments))


def build_settings(mapping: Mapping[str, Any]) -> Settings:
    """Return Settings from a mapping in which model may name a preset."""
    model = mapping.get("model")
    if isinstance(model, Mapping) and "preset" in model:
        own = {name: value for name, value in model.items() if name != "preset"}
        mapping = {**mapping, "model": {**presets.fields(model["preset"]), **own}}
    return sets.build(Settings, mapping)

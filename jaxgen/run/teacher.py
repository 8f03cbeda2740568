"""The teacher of a run: another model of the same tokenizer, asked batch by batch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import files
from jaxgen.adapters.base import fingerprint
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.model import load
from jaxgen.run.folder import TEACHER
from jaxgen.run.settings import Settings
from jaxgen.store.steps import run_and_step
from jaxgen.tokens import Tokenizer
from jaxgen.train.distill import teach


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model whose probabilities are put into batches; its weights may be quantised."""

    ask: Any  # (params, tokens, segments, positions) -> what a batch holds
    params: api.Params

    def add(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return a batch with what the teacher says of it."""
        inputs = (batch[name] for name in ("tokens", "segments", "positions"))
        return {**batch, **jax.device_get(self.ask(self.params, *inputs))}


def _tokenizer_file(home: Path) -> str:
    """Return the file of a teacher's tokenizer, as far as there is one that can be named."""
    names = ("tokenizer/tokenizer.model", "tokenizer.model", "tokenizer.json")
    return next((str(home / name) for name in names if (home / name).is_file()), "...")


def read_teacher(settings: Settings, tokenizer: Tokenizer, folder: Path) -> Teacher:
    """Return the teacher of a run; its digest stays in the run's folder.

    Raises ConfigError for one of another tokenizer or kind, a context that is too short, or one
    that is not the same as when the run began.
    """
    distill = settings.distill
    assert distill.teacher is not None
    home = run_and_step(distill.teacher)[0]
    if read_tokenizer(home).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"distill.teacher={distill.teacher} has another tokenizer; begin the student with it "
            f"(init_from, or tokenizer.kind=file and tokenizer.file={_tokenizer_file(home)}), or "
            f"let it learn from texts that the teacher writes: `jaxgen generate`, then data.files"
        )
    config, params = load(distill.teacher)
    _check(config, settings)
    _check_same(params, folder / TEACHER, distill.teacher)

    @jax.jit
    def ask(params: api.Params, tokens: Any, segments: Any, positions: Any) -> dict[str, Any]:
        out = api.apply(params, config, tokens, segments=segments, positions=positions)
        assert out.logits is not None
        return teach(out.logits[..., : settings.model.V], distill)

    return Teacher(ask, params)


def _check(config: ModelConfig, settings: Settings) -> None:
    name, model = settings.distill.teacher, settings.model
    if config.topology != "decoder" or config.head != "lm":
        raise ConfigError(
            f"distill.teacher={name} has topology={config.topology} and head={config.head}; it "
            f"must be a decoder with head=lm"
        )
    if config.V < model.V:
        raise ConfigError(
            f"distill.teacher={name} knows {config.V} ids, fewer than model.vocab_size={model.V}"
        )
    top = settings.distill.top
    if top is not None and top >= model.V:
        raise ConfigError(
            f"distill.top={top} must be less than model.vocab_size={model.V}; null: all tokens"
        )
    if config.longest < model.context:
        raise ConfigError(
            f"distill.teacher={name} has a context of {config.longest}, shorter than "
            f"model.context={model.context}; give a shorter one"
        )


def _check_same(params: api.Params, path: Path, name: Path) -> None:
    """Write the digest of a teacher; ConfigError if the run has begun with another one."""
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}
    digest = sha256(json.dumps(fingerprint(leaves)).encode()).hexdigest()
    if not path.exists():
        if path.parent.exists():
            files.write_json(path, {"teacher": str(name), "sha256": digest})
        return
    if files.read_json(path, "record of a teacher", 1 << 16).get("sha256") != digest:
        raise ConfigError(
            f"distill.teacher={name} is not the model that the run began with ({path}); restore "
            f"it, or give another --out"
        )

"""The teacher of a run: another model of the same tokenizer, asked batch by batch.

What it says may be kept in a folder (`distill.keep`): a file for each batch, named by the digest of
its inputs, that begins with the digest of the rest. Then a batch is asked for once, whatever runs
come, and the teacher's weights are in memory only while batches are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import files
from jaxgen.adapters.base import fingerprint
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import api
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.model import load
from jaxgen.run.check_distill import check_teacher
from jaxgen.run.folder import TEACHER
from jaxgen.run.settings import Settings
from jaxgen.store.steps import run_and_step
from jaxgen.tokens import Tokenizer
from jaxgen.train.distill import taps_of, teach

INPUTS = ("tokens", "segments", "positions")


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model whose probabilities are put into batches; its weights may be quantised."""

    ask: Any  # (params, tokens, segments, positions) -> what a batch holds
    read: Callable[[], api.Params]
    keep: Path | None

    @cached_property
    def params(self) -> api.Params:
        """Its weights, read once they are needed."""
        return self.read()

    def add(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return a batch with what the teacher says of it; CheckpointError for a damaged file."""
        inputs = [np.asarray(batch[name]) for name in INPUTS]
        if self.keep is None:
            return {**batch, **jax.device_get(self.ask(self.params, *inputs))}
        path = self.keep / f"{sha256(b''.join(x.tobytes() for x in inputs)).hexdigest()}.npz"
        if not path.exists():
            raw = BytesIO()
            np.savez(raw, **jax.device_get(self.ask(self.params, *inputs)))
            files.write(path, sha256(raw.getvalue()).digest() + raw.getvalue())
        with files.refusals(path):
            content = path.read_bytes()
        if sha256(content[32:]).digest() != content[:32]:
            raise CheckpointError(f"{path} is damaged; remove it, and the teacher is asked again")
        with np.load(BytesIO(content[32:]), allow_pickle=False) as said:
            return {**batch, **said}


def _tokenizer_file(home: Path) -> str:
    """Return the file of a teacher's tokenizer, as far as there is one that can be named."""
    names = ("tokenizer/tokenizer.model", "tokenizer.model", "tokenizer.json")
    return next((str(home / name) for name in names if (home / name).is_file()), "...")


def read_teacher(settings: Settings, tokenizer: Tokenizer, folder: Path, data: str) -> Teacher:
    """Return the teacher of a run; its digest stays in the run's folder, and in that of its words.

    data: digest of the run's text. Raises ConfigError for one of another tokenizer or kind, layers
    that don't fit, a context that is too short, or one that is not the same as when the run, or
    distill.keep, began.
    """
    distill, teacher = settings.distill, settings.distill.teacher
    assert teacher is not None
    home = run_and_step(teacher)[0]
    if read_tokenizer(home).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"distill.teacher={teacher} has another tokenizer; begin the student with it "
            f"(init_from, or tokenizer.kind=file and tokenizer.file={_tokenizer_file(home)}), or "
            f"let it learn from texts that the teacher writes: `jaxgen generate`, then data.files"
        )
    config, params = load(teacher)
    check_teacher(config, settings)
    digest = _digest(params)
    _check_same({"sha256": digest}, folder / TEACHER, teacher)
    student, keep = settings.model, distill.keep
    if keep is not None:
        said = {"top": distill.top, "temperature": distill.temperature, "vocabulary": student.V}
        with files.refusals(keep):
            keep.mkdir(parents=True, exist_ok=True)
        _check_same({"sha256": digest, "data": data, **said}, keep / TEACHER, teacher)

    @jax.jit
    def ask(params: api.Params, tokens: Any, segments: Any, positions: Any) -> dict[str, Any]:
        where = {"segments": segments, "positions": positions}
        out = api.apply(params, config, tokens, taps=taps_of(distill), **where)
        assert out.logits is not None
        return teach(out.logits[..., : student.V], distill, out.taps, config, student)

    def read() -> api.Params:
        return load(teacher)[1]

    return Teacher(ask, read if keep else lambda: params, keep)


def _digest(params: api.Params) -> str:
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}
    return sha256(json.dumps(fingerprint(leaves)).encode()).hexdigest()


def _check_same(known: dict[str, Any], path: Path, name: Path) -> None:
    """Write what is known of a teacher; ConfigError if a file begun earlier says otherwise."""
    if not path.exists():
        if path.parent.exists():
            files.write_json(path, {"teacher": str(name), **known})
        return
    before = files.read_json(path, "record of a teacher", 1 << 16)
    if names := [key for key in known if before.get(key) != known[key]]:
        what = "model" if names == ["sha256"] else f"one (its {' and '.join(names)})"
        raise ConfigError(
            f"distill.teacher={name} is not the {what} that {path} was begun with; restore it, or "
            f"give another {'--out' if len(known) == 1 else 'distill.keep'}"
        )

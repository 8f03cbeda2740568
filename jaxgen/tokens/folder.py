"""A tokenizer as a folder: its model file, and a description with a digest of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.tokens.protocol import Special, Tokenizer

ABOUT = "about.json"
FORMAT = 1
MAX_BYTES = 1 << 30


def save_folder(
    path: str | PathLike, kind: str, model: tuple[str, bytes] | None, tokenizer: Tokenizer
) -> None:
    """Write a new folder, whole or not at all; BusyError where the system refuses.

    model: (file name, content), or None for a kind that needs none.
    """
    about = {
        "format": FORMAT,
        "kind": kind,
        "model": model and model[0],
        "sha256": model and hashlib.sha256(model[1]).hexdigest(),
        "special": asdict(tokenizer.special),
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
    }
    if roles := getattr(tokenizer, "roles", None):
        about["roles"] = roles
    with files.new_folder(path) as draft:
        if model:
            (draft / model[0]).write_bytes(model[1])
        files.write_json(draft / ABOUT, about)


def read_folder(path: Path) -> tuple[dict[str, Any], bytes, Special]:
    """Return (description, content of the model file, special ids).

    Raises CheckpointError if the folder is no saved tokenizer, or not as it was saved.
    """
    raw = files.read_artifact(path / ABOUT, "description of a tokenizer", 1 << 20)
    try:
        about = json.loads(raw)
        newest, kind, name, digest = (about[k] for k in ("format", "kind", "model", "sha256"))
        special = Special(**about["special"])
        valid = all(i is None or type(i) is int for i in asdict(special).values())
        texts = (kind, about["fingerprint"], *about.get("roles", {}).values())
        sized = type(about["vocab_size"]) is int and about["vocab_size"] > 0
        if not (valid and sized and all(isinstance(text, str) for text in texts)):
            raise ValueError("a field is of the wrong type")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / ABOUT} is damaged: {error!r}; save it again") from error
    if newest != FORMAT:
        raise CheckpointError(
            f"{path / ABOUT} is of format {newest}, this jaxgen reads {FORMAT}; upgrade jaxgen"
        )
    if name is None:
        return about, b"", special
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{path / ABOUT}: model={name!r} is not a file of this folder")
    model = files.read_artifact(path / name, "tokenizer file", MAX_BYTES)
    if hashlib.sha256(model).hexdigest() != digest:
        raise CheckpointError(f"{path / name} is damaged: its sha256 is not the one in {ABOUT}")
    return about, model, special

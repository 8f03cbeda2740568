"""The tensors of a folder under the names that its family knows, compared with those it needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, nearest
from jaxgen.models.families.family import Family
from jaxgen.models.families.weights import Theirs
from jaxgen.pretrained.compressed_tensors import Packed
from jaxgen.pretrained.gguf_read import Stored
from jaxgen.store import safetensors

CONFIG = "config.json"
Tensor = safetensors.Tensor | Stored | Packed
NAMED = 12  # tensors in a message


def named(
    folder: Path,
    family: Family,
    config: ModelConfig,
    stored: Mapping[str, Tensor],
    wanted: Mapping[str, Theirs],
) -> dict[str, Tensor]:
    """Return the tensors under the family's full names, without those that say nothing new."""
    if others := {name for name in stored if tree.match(name, family.left_out)}:
        parts = sorted({_part(name) for name in others})
        warnings.warn(
            f"{folder}: of its parts the language model is read; left out: {', '.join(parts)}",
            stacklevel=4,
        )
    stored = {_modern(family, name): stored[name] for name in stored if name not in others}
    prefix = family.moved.get(config.head, family.prefix)
    if not any(name.startswith(prefix) for name in stored):
        stored = {n if n in wanted else prefix + n: t for n, t in stored.items()}
    named = {
        n: t for n, t in stored.items() if n in wanted or not tree.match(n, family.ignored_tensors)
    }
    if left := sorted(n for n in stored.keys() - named.keys() if ".pooler." in n):
        warnings.warn(
            f"{folder}: {', '.join(left)} are left out: no head={config.head} reads a pooler",
            stacklevel=4,
        )
    for copy, original in family.copies.items():
        if copy in named and copy not in wanted and original not in named:
            named[original] = named.pop(copy)
        if copy in named and copy not in wanted and original in named:
            one, other = named[copy], named[original]
            if one.shape != other.shape or one.read().tobytes() != other.read().tobytes():
                raise CheckpointError(
                    f"{folder}: tie_word_embeddings says that {copy!r} is {original!r}, but they "
                    f"differ; set it to false in {CONFIG}"
                )
            del named[copy]
    return named


def _part(name: str) -> str:
    """Return the part of a model of several that a tensor is of, as "vision_model"."""
    return name.removeprefix("model.").partition(".")[0]


def _modern(family: Family, name: str) -> str:
    for begin, own in family.renamed.items():
        if name.startswith(begin):
            name = own + name.removeprefix(begin)
    # Norms of files that were once TensorFlow's.
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def check_names(folder: Path, shapes: Mapping[str, tuple], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError that counts missing, unknown and misshapen tensors, and names some."""
    missing = sorted(wanted.keys() - shapes.keys())
    unknown = sorted(shapes.keys() - wanted.keys())
    misshapen = [
        f"{name} is {list(shapes[name])}, not {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & shapes.keys())
        if tuple(shapes[name]) != wanted[name].shape
    ]
    problems = [
        _listed("missing", missing, lambda name: name + nearest(name, unknown, "is it")),
        _listed("unknown", unknown, lambda name: name + nearest(name, missing, "is it")),
        _listed("of another shape", misshapen, str),
    ]
    if said := "; ".join(filter(None, problems)):
        raise CheckpointError(f"{folder}: the tensors don't fit the config; {said}")


def _listed(word: str, names: list[str], tell: Callable[[str], str]) -> str:
    """Return how many there are and the first; of a model with experts they are thousands."""
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {word}: {', '.join(map(tell, names[:NAMED]))}{more}"

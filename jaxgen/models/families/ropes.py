"""Rotary positions, as families say them: their kinds of scaling, and what turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_groups import Rope
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.quirks import LAYER_TYPES, Theirs

# Names of rope_parameters (transformers 5) and rope_scaling (4): ours -> theirs, by kind.
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low": "beta_slow",
        "high": "beta_fast",
        "attention": "attention_factor",
        "bounds": "truncate",
    },
    "longrope": {
        "original_context": "original_max_position_embeddings",
        "attention": "attention_factor",
        "short": "short_factor",
        "long": "long_factor",
    },
}
_ROPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "yarn": {"beta_slow": 1, "beta_fast": 32, "attention_factor": None, "truncate": True},
    "longrope": {"attention_factor": None},
}
_BOUNDS = {True: "whole", False: "exact"}
_ROPE_NAMES = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "truncate")
# Of models that see: how positions of an image are told, which those of a text have alike.
_ROPE_NAMES += ("mrope_section", "mrope_interleaved")
# Two numbers, from which the attention factor of yarn follows where it is not given.
_YARN_SCALES = ("mscale", "mscale_all_dim")


def rope_fields(parameters: Any, theirs: Theirs, *, partial: bool) -> dict[str, Any]:
    """Return the fields of a Rope of one set of rope parameters.

    partial: whether the family's code reads the share of a head that turns.
    """
    given = {} if parameters is None else parameters
    if not isinstance(given, dict):
        raise CheckpointError(f"rope_scaling={given!r:.60} is no mapping")
    given = {name: value for name, value in given.items() if value is not None}
    theta = given.pop("rope_theta", theirs["rope_theta"])
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if kind not in [*SCALINGS]:  # it may be a list
        known = ", ".join(SCALINGS)
        raise CheckpointError(
            f"rope_scaling: rope_type={kind!r:.60} is not known here; known are {known}"
        )
    names = SCALINGS[kind]
    rotary = theirs.get("partial_rotary_factor")
    share = given.pop("partial_rotary_factor", 1.0 if rotary is None else rotary)
    if share != 1 and not partial:
        raise CheckpointError(
            f"rope_scaling: partial_rotary_factor={share!r:.60} is not known here; known is 1"
        )
    # The context of before, where it is told, stands beside the rest and wins.
    before = theirs.get("original_max_position_embeddings")
    full = {"original_max_position_embeddings": theirs["max_position_embeddings"]}
    full = {**full, **_ROPE_DEFAULTS.get(kind, {}), **given}
    if before is not None:
        full["original_max_position_embeddings"] = before
    if kind == "yarn":
        if given.get("attention_factor") is None:
            full["attention_factor"] = _yarn_factor(given)
        full["truncate"] = _BOUNDS.get(full["truncate"])
    if kind == "longrope" and given.get("attention_factor") is None:
        full["attention_factor"] = _longrope_factor(given, full, theirs)
    if missing := [name for name in names.values() if name not in full]:
        raise CheckpointError(f"rope_scaling of type {kind} lacks {', '.join(missing)}")
    scaling = {ours: full[name] for ours, name in names.items()}
    if kind == "dynamic":  # whose context before is that of the config, whatever else is told
        scaling["original_context"] = theirs["max_position_embeddings"]
    scaling = {"kind": "none" if kind == "default" else kind, **scaling}
    return {"theta": theta, "share": share, "scaling": scaling}


def proportional_rope(given: Theirs) -> dict[str, Any]:
    """Return the fields of a Rope whose pairs are halves of the head, of which a share turns."""
    factor = given.get("factor", 1.0)
    scaling = {"kind": "none"} if factor == 1 else {"kind": "linear", "factor": factor}
    share = given.get("partial_rotary_factor", 1.0)
    theta = given.get("rope_theta", 10000.0)
    return {"theta": theta, "share": share, "pairs": "halves_of_head", "scaling": scaling}


def rope_settings(rope: Rope) -> dict[str, Any]:
    """Return the settings of a Rope, in the spelling of transformers 4, which 5 reads as well."""
    scaling, share = rope.scaling, {} if rope.share == 1 else {"partial_rotary_factor": rope.share}
    if scaling.kind == "none":
        return {"rope_theta": rope.theta, "rope_scaling": None, **share}
    if scaling.kind == "longrope":  # Phi's configs have a value of their own, which wins
        share |= {"original_max_position_embeddings": scaling.original_context}
    factors = {name: getattr(scaling, ours) for ours, name in SCALINGS[scaling.kind].items()}
    factors = {name: value for name, value in factors.items() if value is not None}
    if scaling.kind == "yarn":
        factors["truncate"] = scaling.bounds == "whole"
        factors |= {"mscale_all_dim": scaling.mscale} if scaling.mscale else {}
    scaled = {"rope_type": scaling.kind, **factors}
    scaled |= {name: list(value) for name, value in factors.items() if isinstance(value, tuple)}
    return {"rope_theta": rope.theta, "rope_scaling": scaled, **share}


def ignored_rope(theirs: Theirs) -> list[str]:
    """Return "rope_scaling.name=value" of what no code of transformers reads for the kind."""
    unread = []
    for key in ("rope_parameters", "rope_scaling"):
        parameters = theirs.get(key)
        if not isinstance(parameters, dict):
            continue
        nested = [name for name in LAYER_TYPES if isinstance(parameters.get(name), dict)]
        parts = {name: parameters[name] for name in nested}
        for part, given in parts.items() or {"": parameters}.items():
            kind = str(given.get("rope_type", given.get("type", "default")))
            read = {*SCALINGS.get(kind, {}).values(), *_ROPE_NAMES}
            read |= {*_YARN_SCALES} if kind == "yarn" else set()
            read |= {"factor"} if kind in ("longrope", "proportional") else set()
            home = f"{key}.{part}." if part else f"{key}."
            unread += [f"{home}{k}={v!r:.40}" for k, v in given.items() if k not in read]
    return unread


def rope(
    *,
    partial: bool = False,
    theta: str = "rope_theta",
    share: str = "partial_rotary_factor",
    kinds: Mapping[str, str] | None = None,
    scores: bool = False,
    gains: tuple[str, str] | None = None,
    untold: Theirs | None = None,
) -> Quirk:
    """Return the quirk of one rope for all layers.

    partial: with the share that turns. theta, share: their names of these. kinds: other names of
    kinds of scaling. scores: with the mscale_all_dim that scales attention scores. gains: longrope
    has these in place of its attention_factor, in texts up to the original context and in longer
    ones. untold: the parameters where config.json has none.
    """
    ours = {theta: "rope_theta", share: "partial_rotary_factor"}

    def read(theirs: Theirs) -> dict[str, Any]:
        theirs = {**theirs, **{name: theirs.get(key) for key, name in ours.items()}}
        parameters = theirs.get("rope_scaling") or theirs.get("rope_parameters") or untold
        if kinds and isinstance(parameters, dict):
            given = parameters.get("rope_type", parameters.get("type"))
            parameters = {**parameters, "rope_type": kinds.get(str(given), given)}
        if gains and isinstance(parameters, dict):
            parameters = _one_gain(parameters, gains)
        fields = rope_fields(parameters, theirs, partial=partial)
        if scores and (gain := (parameters or {}).get("mscale_all_dim")):
            if fields["scaling"]["kind"] not in ("none", "yarn"):
                raise CheckpointError(
                    f"rope_scaling: mscale_all_dim={gain!r:.60} is known with type yarn alone"
                )
            if fields["scaling"]["kind"] == "yarn":
                fields["scaling"]["mscale"] = gain
        return {f"rope.{name}": value for name, value in fields.items()}

    def write(config: ModelConfig) -> dict[str, Any]:
        settings = rope_settings(config.rope)
        if untold and settings["rope_scaling"] is None:
            settings["rope_scaling"] = {"rope_type": "default"}
        if partial:
            settings["partial_rotary_factor"] = config.rope.share
        if gains and (scaled := settings["rope_scaling"]) is not None:
            scaled |= dict.fromkeys(gains, scaled.pop("attention_factor", 1.0))
        return {{name: key for key, name in ours.items()}.get(k, k): v for k, v in settings.items()}

    def ignored(theirs: Theirs) -> list[str]:
        known = tuple(f".{name}=" for name in gains or ())
        return [key for key in ignored_rope(theirs) if not any(one in key for one in known)]

    renamed = {name for key, name in ours.items() if key != name}
    return Quirk((*ours, *(k for k in ROPE_KEYS if k not in renamed)), read, write, ignored)


def _one_gain(parameters: dict[str, Any], gains: tuple[str, str]) -> dict[str, Any]:
    """Return rope parameters whose two factors of rotated queries and keys are one."""
    if parameters.get("rope_type", parameters.get("type", "default")) == "default":
        return parameters
    values = {name: parameters.get(name) for name in gains}
    if len({*values.values()}) != 1 or None in values.values():
        words = " and ".join(f"{name}={value!r:.40}" for name, value in values.items())
        raise CheckpointError(f"rope_scaling: {words} must be numbers that are equal")
    own = {name: value for name, value in parameters.items() if name not in gains}
    return own | {"attention_factor": values[gains[0]]}


ROPE_KEYS = (
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
    "original_max_position_embeddings",
)
ROPE = rope()


def _longrope_factor(given: Theirs, full: Theirs, theirs: Theirs) -> float:
    """Return the attention factor of how much longer the context is than before."""
    before = full["original_max_position_embeddings"]
    factor = given.get("factor")
    if not isinstance(before, int) or before < 2:
        raise CheckpointError(f"original_max_position_embeddings={before!r:.60} is no context")
    if factor is None:
        factor = theirs["max_position_embeddings"] / before
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(before))


def _yarn_factor(given: Theirs) -> float | None:
    """Return the attention factor of two scales; None: the one of the paper."""
    over, under = (given.get(name) for name in _YARN_SCALES)
    factor = given.get("factor")
    if not over or not under or not isinstance(factor, int | float):
        return None
    if not isinstance(over, int | float) or not isinstance(under, int | float):
        raise CheckpointError(f"rope_scaling: {' and '.join(_YARN_SCALES)} are no numbers")
    if factor <= 1:
        return 1.0
    return (0.1 * over * math.log(factor) + 1.0) / (0.1 * under * math.log(factor) + 1.0)

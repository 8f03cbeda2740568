"""Settings that several families say in a way of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_groups import Rope
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.resolved import value_of
from jaxgen.models.families.rows import Row

Theirs = Mapping[str, Any]


def token_classes(name: str) -> tuple[Row, ...]:
    """Return the rows of the head that tells the class of each token."""
    return (
        Row(f"{name}.weight", ("head/out",), "C,D"),
        Row(f"{name}.bias", ("head/out_bias",), "C"),
    )


# Names of the kinds of layers: with and without a window.
LAYER_TYPES = {"full_attention": "global", "sliding_attention": "local"}
# The extractive head, which has one name everywhere.
SPANS = token_classes("qa_outputs")
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


def one_of(field: str, key: str, values: Mapping[Any, Any]) -> Quirk:
    """Return the quirk of a choice: `values` maps theirs to ours; the first of equals is kept."""

    def read(theirs: Theirs) -> dict[str, Any]:
        value = theirs.get(key)
        if not isinstance(value, str | bool) or value not in values:
            known = ", ".join(map(repr, values))
            raise CheckpointError(f"{key}={value!r:.60} is not known here; known are {known}")
        return {field: values[value]}

    def write(config: ModelConfig) -> dict[str, Any]:
        ours = value_of(config, field)
        return {key: next((k for k, v in values.items() if v == ours), next(iter(values)))}

    return Quirk((key,), read, write)


def fixed(**ours: Any) -> Quirk:
    """Return the quirk of what no key tells; of a group's fields as group__field."""
    fields = {name.replace("__", "."): value for name, value in ours.items()}
    return Quirk((), lambda theirs: fields, lambda config: {})


def of_heads(heads: tuple[str, ...], *quirks: Quirk) -> tuple[Quirk, ...]:
    """Return the quirks as those that only models of certain heads of ours have."""
    return tuple(quirk._replace(heads=heads) for quirk in quirks)


def together(field: str, keys: tuple[str, ...], values: Mapping[tuple[Any, ...], Any]) -> Quirk:
    """Return the quirk of a choice that several keys make: `values` maps theirs to ours."""

    def read(theirs: Theirs) -> dict[str, Any]:
        found = tuple(theirs[key] for key in keys)
        for known, ours in values.items():
            if all(type(a) is type(b) and a == b for a, b in zip(found, known, strict=True)):
                return {field: ours}
        told = " with ".join(f"{key}={value!r:.60}" for key, value in zip(keys, found, strict=True))
        raise CheckpointError(f"{told} is not known here")

    def write(config: ModelConfig) -> dict[str, Any]:
        ours = value_of(config, field)
        known = next((k for k, v in values.items() if v == ours), next(iter(values)))
        return dict(zip(keys, known, strict=True))

    return Quirk(keys, read, write)


def multiplier(field: str, key: str, *, inverse: bool = False) -> Quirk:
    """Return the quirk of a factor, which ours calls "one" if it is 1; inverse: or a divisor."""

    def read(theirs: Theirs) -> dict[str, Any]:
        value = theirs[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{key}={value!r:.60} is no number above 0")
        return {field: "one" if value == 1 else 1 / value if inverse else float(value)}

    def write(config: ModelConfig) -> dict[str, Any]:
        ours = value_of(config, field)
        value = {"one": 1.0, "root": config.d_model**0.5}.get(ours, ours)
        return {key: 1 / value if inverse else value}

    return Quirk((key,), read, write)


def inside(key: str, names: Mapping[str, str], only: Mapping[str, Any]) -> Quirk:
    """Return the quirk of settings in a mapping: ours -> theirs, and the values known of others."""

    def read(theirs: Theirs) -> dict[str, Any]:
        given = theirs[key] or {}
        if not isinstance(given, dict):
            raise CheckpointError(f"{key}={given!r:.60} is no mapping")
        for name, known in only.items():
            if given.get(name) not in (None, known):
                raise CheckpointError(
                    f"{key}.{name}={given[name]!r:.60} is not known here; known is {known!r}"
                )
        return {ours: given.get(name) for ours, name in names.items()}

    def write(config: ModelConfig) -> dict[str, Any]:
        return {key: {**only, **{name: value_of(config, ours) for ours, name in names.items()}}}

    return Quirk((key,), read, write)


TIED = one_of("output", "tie_word_embeddings", {True: "tied", False: "untied"})
BIASES = together(
    "biases",
    ("attention_bias", "mlp_bias"),
    {
        (False, False): "none",
        (True, False): "attention",
        (True, True): "all",
        (False, True): "feed",
    },
)
# Attention scores times a number of its own.
SCORE_MULTIPLIER = Quirk(
    ("attention_multiplier",),
    lambda theirs: {"scores.multiplier": theirs["attention_multiplier"]},
    lambda config: {"attention_multiplier": config.score_scale},
)
ATTENTION_BIAS = one_of("biases", "attention_bias", {False: "none", True: "attention"})
GATES = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
    "gelu": "geglu_exact",
    "relu": "reglu",
}
GATED = one_of("feed", "hidden_act", GATES)


def same(keys: tuple[str, ...], field: str) -> Quirk:
    """Return the quirk of settings that must be equal for us, such as heads of both sides."""

    def read(theirs: Theirs) -> dict[str, Any]:
        values = {key: theirs[key] for key in keys if key in theirs}
        if not values or len(set(map(repr, values.values()))) != 1:
            told = ", ".join(f"{key}={value!r:.20}" for key, value in values.items())
            raise CheckpointError(f"{told or keys[0]}: they must be there and equal")
        return {field: next(iter(values.values()))}

    return Quirk(keys, read, lambda config: dict.fromkeys(keys, value_of(config, field)))


def dropout(ours: tuple[str, ...], scores: str) -> Quirk:
    """Return the quirk of dropout: their names of ours, and that of attention probabilities."""

    def read(theirs: Theirs) -> dict[str, Any]:
        rate, other = theirs[ours[0]], theirs[scores]
        return {"dropout": rate, "scores.dropout": None if other == rate else other}

    def write(config: ModelConfig) -> dict[str, Any]:
        return dict.fromkeys(ours, config.dropout) | {scores: config.score_dropout}

    return Quirk((*ours, scores), read, write)


def whole(field: str, key: str) -> Quirk:
    """Return the quirk of a number that transformers wants without a fraction."""

    def write(config: ModelConfig) -> dict[str, Any]:
        if (value := value_of(config, field)) is None:
            raise CheckpointError(f"the config has no {field}, so no {key}")
        return {key: int(value)}

    return Quirk((key,), lambda theirs: {field: theirs[key]}, write)


def table_width(key: str, project: str) -> Quirk:
    """Return the quirk of the width of the tables of tokens, where it is not the model's.

    project: what is projected from one to the other, as `Embed.project`.
    """

    def read(theirs: Theirs) -> dict[str, Any]:
        width = theirs[key]
        if width == theirs["hidden_size"]:
            return {}
        return {"embed.width": width, "embed.project": project}

    return Quirk((key,), read, lambda config: {key: config.embed_width})


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
    if kind not in SCALINGS:
        known = ", ".join(SCALINGS)
        raise CheckpointError(
            f"rope_scaling: rope_type={kind!r:.60} is not known here; known are {known}"
        )
    names = SCALINGS[kind]
    told = theirs.get("partial_rotary_factor")
    share = given.pop("partial_rotary_factor", 1.0 if told is None else told)
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
    found = {name: getattr(scaling, ours) for ours, name in SCALINGS[scaling.kind].items()}
    found = {name: value for name, value in found.items() if value is not None}
    if scaling.kind == "yarn":
        found["truncate"] = scaling.bounds == "whole"
        found |= {"mscale_all_dim": scaling.mscale} if scaling.mscale else {}
    told = {"rope_type": scaling.kind, **found}
    told |= {name: list(value) for name, value in found.items() if isinstance(value, tuple)}
    return {"rope_theta": rope.theta, "rope_scaling": told, **share}


def ignored_rope(theirs: Theirs) -> list[str]:
    """Return "rope_scaling.name=value" of what no code of transformers reads for the kind."""
    found = []
    for key in ("rope_parameters", "rope_scaling"):
        parameters = theirs.get(key)
        if not isinstance(parameters, dict):
            continue
        nested = [name for name in LAYER_TYPES if isinstance(parameters.get(name), dict)]
        parts = {name: parameters[name] for name in nested}
        for part, given in parts.items() or {"": parameters}.items():
            kind = given.get("rope_type", given.get("type", "default"))
            read = {*SCALINGS.get(kind, {}).values(), *_ROPE_NAMES}
            read |= {*_YARN_SCALES} if kind == "yarn" else set()
            read |= {"factor"} if kind in ("longrope", "proportional") else set()
            home = f"{key}.{part}." if part else f"{key}."
            found += [f"{home}{k}={v!r:.40}" for k, v in given.items() if k not in read]
    return found


def rope(
    *,
    partial: bool = False,
    theta: str = "rope_theta",
    share: str = "partial_rotary_factor",
    kinds: Mapping[str, str] | None = None,
    scores: bool = False,
    gains: tuple[str, str] | None = None,
) -> Quirk:
    """Return the quirk of one rope for all layers.

    partial: with the share that turns. theta, share: their names of these. kinds: other names of
    kinds of scaling. scores: with the mscale_all_dim that scales attention scores. gains: longrope
    has these in place of its attention_factor, in texts up to the original context and in longer
    ones.
    """
    ours = {theta: "rope_theta", share: "partial_rotary_factor"}

    def read(theirs: Theirs) -> dict[str, Any]:
        theirs = {**theirs, **{name: theirs.get(key) for key, name in ours.items()}}
        parameters = theirs.get("rope_scaling") or theirs.get("rope_parameters")
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
        if partial:
            settings["partial_rotary_factor"] = config.rope.share
        if gains and (told := settings["rope_scaling"]) is not None:
            told |= dict.fromkeys(gains, told.pop("attention_factor", 1.0))
        return {{name: key for key, name in ours.items()}.get(k, k): v for k, v in settings.items()}

    def ignored(theirs: Theirs) -> list[str]:
        known = tuple(f".{name}=" for name in gains or ())
        return [told for told in ignored_rope(theirs) if not any(one in told for one in known)]

    renamed = {name for key, name in ours.items() if key != name}
    return Quirk((*ours, *(k for k in ROPE_KEYS if k not in renamed)), read, write, ignored)


def _one_gain(parameters: dict[str, Any], gains: tuple[str, str]) -> dict[str, Any]:
    """Return rope parameters whose two factors of rotated queries and keys are one."""
    if parameters.get("rope_type", parameters.get("type", "default")) == "default":
        return parameters
    told = {name: parameters.get(name) for name in gains}
    if len({*told.values()}) != 1 or None in told.values():
        words = " and ".join(f"{name}={value!r:.40}" for name, value in told.items())
        raise CheckpointError(f"rope_scaling: {words} must be numbers that are equal")
    own = {name: value for name, value in parameters.items() if name not in gains}
    return own | {"attention_factor": told[gains[0]]}


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

"""Settings that several families say in a way of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_parts import BIASES, Part
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


def biases(parts: Mapping[str, tuple[Part, ...]]) -> Quirk:
    """Return the quirk of keys that switch on the biases of parts of a layer: key -> its parts.

    Those of norms count where a key has them: a norm that has none is the same with them.
    """
    free = {"norm"}.difference(*parts.values())

    def read(theirs: Theirs) -> dict[str, Any]:
        words = ", ".join(f"{key}={theirs[key]!r:.60}" for key in parts)
        on = {part for key, own in parts.items() if theirs[key] for part in own}
        known = [word for word, own in BIASES.items() if {*own} - free == on]
        if not known or not all(isinstance(theirs[key], bool) for key in parts):
            raise CheckpointError(f"{words}: such biases are not known here")
        return {"biases": known[-1]}

    def write(config: ModelConfig) -> dict[str, Any]:
        return {key: all(map(config.has_bias, own)) for key, own in parts.items()}

    return Quirk(tuple(parts), read, write)


ATTENTION_AND_FEED = biases({"attention_bias": ("qkv", "o"), "mlp_bias": ("feed",)})
# Attention scores times a number of its own.
SCORE_MULTIPLIER = Quirk(
    ("attention_multiplier",),
    lambda theirs: {"scores.multiplier": theirs["attention_multiplier"]},
    lambda config: {"attention_multiplier": config.score_scale},
)
# Or divided by the number of their layer.
BY_LAYER = one_of(
    "scores.by_layer", "scale_attn_by_inverse_layer_idx", {False: "same", True: "inverse"}
)
ATTENTION_BIAS = one_of("biases", "attention_bias", {False: "none", True: "attention"})
FEED = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "gelu_sigmoid",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
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
            words = ", ".join(f"{key}={value!r:.20}" for key, value in values.items())
            raise CheckpointError(f"{words or keys[0]}: they must be there and equal")
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

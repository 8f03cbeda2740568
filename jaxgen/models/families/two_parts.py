"""A config.json with a part for each tower of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import ENCODER, MAX_LAYERS, Quirk
from jaxgen.models.families.known_settings import NEUTRAL
from jaxgen.models.families.layer_kinds import MOST_WINDOWS, shortest

PARTS = ("encoder", "decoder")
# Sizes that each part has of its own: ours -> theirs.
SIZES = {
    "layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
}
# Of a part: what both may say in a way of their own, and what the whole says.
OWN = {"layer_types", "is_decoder", "cross_attention_hidden_size", *SIZES.values(), *NEUTRAL}
WHOLE = {"architectures", "model_type", "is_encoder_decoder", "vocab_size", "dropout_rate"}
WHOLE |= {"attention_dropout", "tie_word_embeddings", "id2label", "label2id"}


KEYS = {key: f"encoder_{key}" for key in SIZES.values()}  # of a part -> the encoder's, once flat


def of_encoder(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a part under the names that the encoder's have once all is flat."""
    return {name: part[key] for key, name in KEYS.items() if key in part}


def flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the decoder, with the encoder's sizes under names of their own.

    Of an encoder alone its part counts, whatever stands in that of a decoder.
    """
    encoder, decoder = (theirs.get(part, {}) for part in PARTS)
    if not isinstance(encoder, dict) or not isinstance(decoder, dict):
        raise CheckpointError("encoder and decoder are no settings of two towers")
    if not encoder and not decoder:
        return dict(theirs)
    decoder = encoder if theirs.get("is_encoder_decoder") is False else decoder
    for key in sorted((encoder.keys() | decoder.keys()) - OWN):
        if (one := encoder.get(key)) != (other := decoder.get(key)):
            raise CheckpointError(
                f"encoder.{key}={one!r:.40} but decoder.{key}={other!r:.40}: they must be equal "
                f"here; what towers may have of their own are {', '.join(SIZES.values())}"
            )
    one, other = map(_kinds, (encoder, decoder))
    pattern = shortest(other)
    if any(kind != pattern[i % len(pattern)] for i, kind in enumerate(one)):
        raise CheckpointError("encoder.layer_types and decoder.layer_types differ")
    parts = {key: value for key, value in decoder.items() if key != "is_decoder"}
    return (
        parts
        | of_encoder(encoder)
        | {key: value for key, value in theirs.items() if key not in PARTS}
    )


def _kinds(part: Mapping[str, Any]) -> list[str]:
    """Return the kinds of layers of a part; where it names none every other has a window."""
    depth = part.get("num_hidden_layers")
    every = ["sliding_attention", "full_attention"] * MAX_LAYERS
    named = part.get("layer_types") or every[: max(depth, 1) if type(depth) is int else None]
    if not isinstance(named, list):
        raise CheckpointError("layer_types of encoder or decoder is no list of kinds")
    return named


def deep(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with a part for each tower."""
    whole = {key: value for key, value in theirs.items() if key in WHOLE}
    sizes = {key: theirs[name] for key, name in KEYS.items()}
    part = {k: v for k, v in theirs.items() if k not in WHOLE and k not in KEYS.values()}
    part |= {"vocab_size": theirs["vocab_size"]}
    kinds = shortest(part["layer_types"])
    first = [kinds[i % len(kinds)] for i in range(sizes["num_hidden_layers"])]
    encoder = part | sizes | {"layer_types": first}
    return whole | {"encoder": encoder, "decoder": part}


def _read_windows(theirs: Mapping[str, Any]) -> dict[str, Any]:
    fields = MOST_WINDOWS.read(theirs)
    window = fields["window"]
    # An encoder's takes in the token that is so many positions away.
    return fields if window is None else fields | {f"{ENCODER}window": window + 1}


def _write_windows(config: ModelConfig) -> dict[str, Any]:
    windows = MOST_WINDOWS.write(config)
    if config.topology != "encoder" or config.window is None:
        return windows
    return windows | {"sliding_window": config.window - 1}


def _read_towers(theirs: Mapping[str, Any]) -> dict[str, Any]:
    names, both = theirs.get("architectures") or [""], theirs["is_encoder_decoder"]
    alone = str(names[0]).endswith("EncoderModel")
    if type(both) is not bool or (not str(names[0]).endswith("Classification") and both is alone):
        raise CheckpointError(
            f"is_encoder_decoder={both!r:.40} with architectures={names!r:.60}: an encoder alone "
            f"has false, a classifier has either, and all others have true"
        )
    return {"topology": "encoder_decoder" if both else "encoder"}


def _read_last(theirs: Mapping[str, Any]) -> dict[str, Any]:
    pool = "first" if theirs["is_encoder_decoder"] else "last"  # a decoder has no other
    return {"head_layer.kind": "none", "head_layer.pool": pool}


WINDOWS = Quirk(MOST_WINDOWS.keys, _read_windows, _write_windows)
TOWERS = Quirk(
    ("is_encoder_decoder",),
    _read_towers,
    lambda config: {"is_encoder_decoder": config.topology == "encoder_decoder"},
)
# The class of a text is that of its last token, without a dense layer.
LAST = Quirk((), _read_last, lambda config: {}, heads=("classes",))
# Of a Family.
FIELDS: dict[str, Any] = {
    "flat": flat,
    "deep": deep,
    "called": {name: f"encoder.{key}" for key, name in KEYS.items()},
}
ENCODER_SIZES = {f"{ENCODER}{ours}": KEYS[key] for ours, key in SIZES.items()}

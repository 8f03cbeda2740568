"""A config.json with a part for each tower of an encoder-decoder, both of one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.models.families.known_settings import NEUTRAL
from jaxgen.models.families.layer_kinds import shortest

PARTS = ("encoder", "decoder")
# Of a part: what both may say in a way of their own, and what the whole says.
OWN = {"num_hidden_layers", "layer_types", "is_decoder", "cross_attention_hidden_size", *NEUTRAL}
WHOLE = {"architectures", "model_type", "is_encoder_decoder", "vocab_size", "dropout_rate"}
WHOLE |= {"attention_dropout", "tie_word_embeddings", "encoder_layers"}


def flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of both towers as those of one, with encoder_layers."""
    encoder, decoder = (theirs.get(part, {}) for part in PARTS)
    if not isinstance(encoder, dict) or not isinstance(decoder, dict):
        raise CheckpointError("encoder and decoder are no settings of two towers")
    for key in sorted((encoder.keys() | decoder.keys()) - OWN):
        if (one := encoder.get(key)) != (other := decoder.get(key)):
            raise CheckpointError(
                f"encoder.{key}={one!r:.40} but decoder.{key}={other!r:.40}: two towers of one "
                f"shape are known here"
            )
    kinds = [part.get("layer_types") or [] for part in (encoder, decoder)]
    if not all(isinstance(names, list) for names in kinds):
        raise CheckpointError("layer_types of encoder or decoder is no list of kinds")
    if any(one != other for one, other in zip(*kinds, strict=False)):
        raise CheckpointError("encoder.layer_types and decoder.layer_types differ")
    parts = {key: value for key, value in decoder.items() if key != "is_decoder"}
    if "num_hidden_layers" in encoder:
        parts["encoder_layers"] = encoder["num_hidden_layers"]
    return parts | {key: value for key, value in theirs.items() if key not in PARTS}


def deep(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with a part for each tower."""
    whole = {key: value for key, value in theirs.items() if key in WHOLE}
    depth = whole.pop("encoder_layers")
    part = {key: value for key, value in theirs.items() if key not in WHOLE}
    part |= {"vocab_size": theirs["vocab_size"]}
    kinds = shortest(part["layer_types"])
    first = [kinds[i % len(kinds)] for i in range(depth)]
    encoder = part | {"num_hidden_layers": depth, "layer_types": first}
    return whole | {"encoder": encoder, "decoder": part}


# Of a Family.
FIELDS: dict[str, Any] = {"flat": flat, "deep": deep}

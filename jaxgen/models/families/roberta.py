"""RoBERTa (Liu et al. 2019): BERT with positions that begin after the padding id."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import encoders
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import fixed, of_heads


def positions(pad: int | None = None) -> Quirk:
    """Return the quirk of positions that begin after the padding id; None: where it is told."""

    def read(theirs) -> dict[str, Any]:
        rows, first = theirs["max_position_embeddings"], pad or theirs["pad_token_id"]
        if type(rows) is not int or type(first) is not int:
            raise CheckpointError(
                f"max_position_embeddings={rows!r:.40}, pad_token_id={first!r:.40}"
            )
        return {"context": rows - first - 1, "embed.offset": first + 1}

    def write(config: ModelConfig) -> dict[str, Any]:
        rows, first = config.context + config.embed.offset, max(config.embed.offset - 1, 0)
        return {"max_position_embeddings": rows, "pad_token_id": first}

    return Quirk(("max_position_embeddings", "pad_token_id"), read, write)


# Its head of masked tokens is a GELU, whatever hidden_act says.
ACTIVATION = of_heads(("mlm",), fixed(head_layer__activation="gelu"))
MASKED = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
POOLED = ("classifier.dense", "classifier.out_proj")

FAMILY = Family(
    model_type="roberta",
    layer="roberta.encoder.layer.{}.",
    sizes=encoders.SIZES,
    choices=encoders.CHOICES,
    defaults=encoders.DEFAULTS | {"pad_token_id": 1},
    only=encoders.ONLY,
    ignored=encoders.IGNORED,
    quirks=(*encoders.QUIRKS, positions(), *ACTIVATION),
    layer_rows=encoders.LAYER_ROWS,
    **encoders.classes("Roberta", base="pooled"),
    **encoders.parts("roberta", MASKED, POOLED, "roberta.pooler.dense"),
)

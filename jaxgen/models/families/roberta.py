"""RoBERTa (Liu et al. 2019): BERT with positions that begin after the padding id."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bert
from jaxgen.models.families.family import Family, Quirk, Row, norm
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of, token_classes


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
        offset = config.embed.offset
        return {
            "max_position_embeddings": config.context + offset,
            "pad_token_id": max(offset - 1, 0),
        }

    return Quirk(("max_position_embeddings", "pad_token_id"), read, write)


def named(name: str) -> dict[str, Any]:
    """Return the classes of a family whose names begin with `name`, as fields of a Family."""
    return {"architecture": f"{name}ForMaskedLM", "heads": bert.heads(name)}


def copies(prefix: str) -> dict[str, str]:
    """Return the tensors that are others, for embeddings whose names begin with `prefix`."""
    table = f"{prefix}embeddings.word_embeddings.weight"
    return {"lm_head.decoder.weight": table, "lm_head.decoder.bias": "lm_head.bias"}


# Its head of masked tokens is a GELU, whatever hidden_act says.
ACTIVATION = bert.activations(mlm="gelu")
MLM_ROWS = (
    *bert.dense("lm_head.dense"),
    *norm("lm_head.layer_norm", "head/norm"),
    Row("lm_head.bias", ("unembed/bias",), "V"),
    Row("lm_head.decoder.weight", ("unembed/tokens",), "V,D"),
)

FAMILY = Family(
    model_type="roberta",
    prefix="roberta.",
    layer="roberta.encoder.layer.{}.",
    sizes=bert.SIZES,
    choices=bert.CHOICES,
    defaults=bert.DEFAULTS | {"pad_token_id": 1},
    only=bert.ONLY,
    ignored=bert.IGNORED,
    quirks=(bert.OUTPUT, positions(), one_of("feed", "hidden_act", FEED), ACTIVATION, bert.DROPOUT),
    rows=bert.rows("roberta."),
    layer_rows=bert.LAYER_ROWS,
    head_rows={
        "mlm": MLM_ROWS,
        "classes": bert.dense("classifier.dense", "classifier.out_proj"),
        "pooled": bert.dense("roberta.pooler.dense"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    copies=copies("roberta."),
    ignored_tensors=("roberta.embeddings.position_ids", "roberta.pooler.*"),
    **named("Roberta"),
)

"""RoBERTa (Liu et al. 2019): BERT with positions that begin after the padding id."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bert
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of, token_classes


def _read_positions(theirs) -> dict[str, Any]:
    rows, pad = theirs["max_position_embeddings"], theirs["pad_token_id"]
    if type(rows) is not int or type(pad) is not int:
        raise CheckpointError(f"max_position_embeddings={rows!r:.40}, pad_token_id={pad!r:.40}")
    return {"context": rows - pad - 1, "position_offset": pad + 1}


def _write_positions(config: ModelConfig) -> dict[str, Any]:
    offset = config.position_offset
    return {
        "max_position_embeddings": config.context + offset,
        "pad_token_id": max(offset - 1, 0),
    }


def _read_activation(theirs) -> dict[str, Any]:
    words = theirs["architectures"][0] if theirs.get("architectures") else "MaskedLM"
    return {"mlm_activation": "gelu"} if words.endswith("MaskedLM") else {}


# Its head of masked tokens is a GELU, whatever hidden_act says.
ACTIVATION = Quirk((), _read_activation, lambda config: {})
POSITIONS = Quirk(("max_position_embeddings", "pad_token_id"), _read_positions, _write_positions)

FAMILY = Family(
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    heads={
        "RobertaForMaskedLM": "mlm",
        "RobertaForSequenceClassification": "classes",
        "RobertaForTokenClassification": "token_classes",
        "RobertaForQuestionAnswering": "spans",
        "RobertaModel": "pooled",
    },
    prefix="roberta.",
    layer="roberta.encoder.layer.{}.",
    sizes=bert.SIZES,
    choices=bert.CHOICES,
    defaults=bert.DEFAULTS | {"pad_token_id": 1},
    only=bert.ONLY,
    ignored=bert.IGNORED,
    quirks=(bert.OUTPUT, POSITIONS, one_of("feed", "hidden_act", FEED), ACTIVATION, bert.DROPOUT),
    rows=bert.rows("roberta."),
    layer_rows=bert.LAYER_ROWS,
    head_rows={
        "mlm": (
            *bert.dense("lm_head.dense"),
            Row("lm_head.layer_norm.weight", ("head/norm/scale",), "D"),
            Row("lm_head.layer_norm.bias", ("head/norm/bias",), "D"),
            Row("lm_head.bias", ("unembed/bias",), "V"),
            Row("lm_head.decoder.weight", ("unembed/tokens",), "V,D"),
        ),
        "classes": bert.dense("classifier.dense", "classifier.out_proj"),
        "pooled": bert.dense("roberta.pooler.dense"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored_tensors=("roberta.embeddings.position_ids", "roberta.pooler.*"),
)

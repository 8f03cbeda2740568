"""M2M-100 (Fan et al. 2020) and NLLB (2022): mBART with waves that begin after the padding id."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family, Quirk


def _read_offset(theirs) -> dict[str, Any]:
    pad = theirs["pad_token_id"]
    if type(pad) is not int or pad < 0:
        raise CheckpointError(f"pad_token_id={pad!r:.40}: positions begin after it; give an id")
    return {"embed.offset": pad + 1}


def _write_offset(config: ModelConfig) -> dict[str, Any]:
    return {"pad_token_id": max(config.embed.offset - 1, 0)}


FAMILY = Family(
    model_type="m2m_100",
    choices=bart_kin.CHOICES | {"positions": "sinusoid_t2t", "norm_at": "pre"},
    defaults=bart_kin.DEFAULTS
    | {"pad_token_id": 1, "activation_function": "relu", "scale_embedding": True}
    | {"attention_dropout": 0.1},
    rows=(*bart_kin.ROWS, *bart_kin.FINAL_NORMS),
    **bart_kin.SHARED
    | {
        # What fairseq wrote of them, which says nothing here.
        "only": {key: bart_kin.ONLY[key] for key in ("is_encoder_decoder", "is_decoder")},
        "ignored": bart_kin.IGNORED | frozenset(bart_kin.ONLY),
        "quirks": (
            bart_kin.output("none"),
            Quirk(("pad_token_id",), _read_offset, _write_offset),
            *bart_kin.QUIRKS[1:],
        ),
    },
    **bart_kin.classes("M2M100"),
    ignored_tensors=("model.*.embed_positions.weights",),
)

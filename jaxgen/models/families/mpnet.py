"""MPNet (Song et al. 2020): BERT with learned positions and T5's biases of distances."""

from __future__ import annotations

from jaxgen.models.families import bert, roberta
from jaxgen.models.families.family import Family, Row, linear, norm
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of, token_classes

PAD = 1  # where its positions begin after, whatever pad_token_id says

FAMILY = Family(
    model_type="mpnet",
    architecture="MPNetForMaskedLM",
    heads=bert.heads("MPNet"),
    prefix="mpnet.",
    layer="mpnet.encoder.layer.{}.",
    sizes={ours: key for ours, key in bert.SIZES.items() if ours != "embed.types"},
    # It never looks at another number of buckets than 32, which config.json only makes a table of.
    choices=bert.CHOICES | {"positions": "learned_relative", "embed.offset": PAD + 1},
    defaults=bert.DEFAULTS | {"max_position_embeddings": 512},
    only={"relative_attention_num_buckets": (32,)},
    ignored=bert.IGNORED,
    quirks=(
        bert.OUTPUT,
        roberta.positions(PAD),
        one_of("feed", "hidden_act", FEED),
        roberta.ACTIVATION,
        bert.DROPOUT,
    ),
    rows=(
        *bert.rows("mpnet."),
        Row("mpnet.encoder.relative_attention_bias.weight", ("relative/bias",), "R,N"),
    ),
    layer_rows=(
        *(row for x in "qkv" for row in linear(f"attention.attn.{x}", f"attn/{x}", "NH,D")),
        *linear("attention.attn.o", "attn/o", "D,NH"),
        *norm("attention.LayerNorm", "attn_norm"),
        *bert.FEED_ROWS,
    ),
    head_rows={
        "mlm": roberta.MLM_ROWS,
        "classes": bert.dense("classifier.dense", "classifier.out_proj"),
        "pooled": bert.dense("mpnet.pooler.dense"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    copies=roberta.copies("mpnet."),
    ignored_tensors=("mpnet.embeddings.position_ids", "mpnet.pooler.*"),
)

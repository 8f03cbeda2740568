"""MPNet (Song et al. 2020): BERT with learned positions and T5's biases of distances."""

from __future__ import annotations

from jaxgen.models.families import encoders, roberta
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row, linear, norm, queries

PAD = 1  # where its positions begin after, whatever pad_token_id says
POOLER = "mpnet.pooler.dense"
BIAS = Row("mpnet.encoder.relative_attention_bias.weight", ("relative/bias",), "R,N")

FAMILY = Family(
    model_type="mpnet",
    layer="mpnet.encoder.layer.{}.",
    sizes={ours: key for ours, key in encoders.SIZES.items() if ours != "embed.types"},
    # It never looks at another number of buckets than 32, which config.json only makes a table of.
    choices=encoders.CHOICES | {"positions": "learned_relative", "embed.offset": PAD + 1},
    defaults=encoders.DEFAULTS | {"max_position_embeddings": 512},
    only={"relative_attention_num_buckets": (32,)},
    ignored=encoders.IGNORED,
    quirks=(*encoders.QUIRKS, roberta.positions(PAD), *roberta.ACTIVATION),
    layer_rows=(
        *queries("attention.attn.{}"),
        *linear("attention.attn.o", "attn/o", "D,NH"),
        *norm("attention.LayerNorm", "attn_norm"),
        *encoders.FEED_ROWS,
    ),
    **encoders.classes("MPNet", base="pooled"),
    **encoders.parts("mpnet", roberta.MASKED, roberta.POOLED, POOLER, more=(BIAS,)),
)

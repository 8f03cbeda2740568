"""The first Transformer (Vaswani et al. 2017), its weights named as torch.nn.Transformer's.

transformers has no such model. Sizes are called as the arguments of torch.nn.Transformer, which is
built without the two last norms that it adds (the paper has none). Waves are sines, then cosines,
as in the authors' own code (tensor2tensor).
"""

from __future__ import annotations

from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import one_of
from jaxgen.models.families.rows import Row, linear, norm


def _attention(name: str, ours: str) -> tuple[Row, ...]:
    inside = tuple(f"{ours}/{x}" for x in "qkv")
    return (
        Row(f"{name}.in_proj_weight", inside, "*NH,D"),
        Row(f"{name}.in_proj_bias", tuple(f"{x}_bias" for x in inside), "*NH"),
        *linear(f"{name}.out_proj", f"{ours}/o", "D,NH"),
    )


_FEED = (*linear("linear1", "feed/up", "F,D"), *linear("linear2", "feed/down", "D,F"))
_SELF = (*_attention("self_attn", "attn"), *norm("norm1", "attn_norm"))

FAMILY = Family(
    model_type="vanilla",
    architecture="Transformer",
    library="torch",
    prefix="",
    layer="decoder.layers.{}.",
    encoder="encoder.layers.{}.",
    sizes={
        "vocab_size": "vocab_size",
        "context": "max_length",
        "towers.encoder_layers": "num_encoder_layers",
        "layers": "num_decoder_layers",
        "d_model": "d_model",
        "heads": "nhead",
        "d_ff": "dim_feedforward",
        "norm_epsilon": "layer_norm_eps",
    },
    choices={
        "topology": "encoder_decoder",
        "norm": "layer",
        "norm_at": "post",
        "positions": "sinusoid",
        "embed.scale": "root",
        "biases": "all",
        "output": "tied",
    },
    defaults={"layer_norm_eps": 1e-5, "activation": "relu", "dropout": 0.1},
    only={"norm_first": (False,), "batch_first": (True,)},
    quirks=(
        one_of("feed", "activation", {"relu": "relu", "gelu": "gelu"}),
        Quirk(
            ("dropout",),
            lambda theirs: {"dropout": theirs["dropout"]},
            lambda config: {"dropout": config.dropout},
        ),
    ),
    rows=(Row("embed.weight", ("embed/tokens",), "V,D"),),
    encoder_rows=(*_SELF, *_FEED, *norm("norm2", "feed_norm")),
    layer_rows=(
        *_SELF,
        *_attention("multihead_attn", "cross"),
        *norm("norm2", "cross_norm"),
        *_FEED,
        *norm("norm3", "feed_norm"),
    ),
)

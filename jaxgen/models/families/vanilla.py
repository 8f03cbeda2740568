"""The first Transformer (Vaswani et al. 2017), its weights named as torch.nn.Transformer's.

transformers has no such model. Sizes are called as the arguments of torch.nn.Transformer, which is
built without the two last norms that it adds (the paper has none). Waves are sines, then cosines,
as in the authors' own code (tensor2tensor).
"""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import one_of
from jaxgen.models.families.rows import Row, feed, linear, norm


def _attention(name: str, ours: str, behind: str) -> tuple[Row, ...]:
    inside = tuple(f"{ours}/{x}" for x in "qkv")
    return (
        *linear(f"{name}.in_proj", inside, "*NH,D", join="_"),
        *linear(f"{name}.out_proj", f"{ours}/o", "D,NH"),
        *norm(behind, f"{ours}_norm"),
    )


_SELF = (*_attention("self_attn", "attn", "norm1"), *feed("linear1", "linear2"))

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
        "dropout": "dropout",
    },
    choices=bart_kin.CHOICES | {"positions": "sinusoid", "embed.scale": "root", "output": "tied"},
    defaults={"layer_norm_eps": 1e-5, "activation": "relu", "dropout": 0.1},
    only={"norm_first": (False,), "batch_first": (True,)},
    quirks=(one_of("feed", "activation", {"relu": "relu", "gelu": "gelu"}),),
    rows=(Row("embed.weight", ("embed/tokens",), "V,D"),),
    encoder_rows=(*_SELF, *norm("norm2", "feed_norm")),
    layer_rows=(
        *_SELF,
        *_attention("multihead_attn", "cross", "norm2"),
        *norm("norm3", "feed_norm"),
    ),
)

"""GPT-J (Wang and Komatsuzaki 2021): rotary positions, attention and feed-forward in parallel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.models.families import decoders, gpt2
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import FEED, TIED, dropout, one_of
from jaxgen.models.families.rows import Row, feed, norm, queries


def _read_rope(theirs: Mapping[str, Any]) -> dict[str, Any]:
    turned, heads, width = (theirs[key] for key in ("rotary_dim", "n_head", "n_embd"))
    if not all(type(size) is int and size > 0 for size in (turned, heads, width)):
        raise CheckpointError(f"rotary_dim={turned!r:.60}: how many numbers of a head turn")
    return {"rope.share": turned * heads / width}


ROTARY = Quirk(
    ("rotary_dim",), _read_rope, lambda config: {"rotary_dim": config.rope.width(config.H)}
)
FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    prefix="transformer.",
    layer="transformer.h.{}.",
    sizes=gpt2.FAMILY.sizes,
    choices={"norm": "layer", "positions": "rope", "parallel": "one_norm", "biases": "feed"}
    | {"rope.pairs": "neighbours", "output_bias": "bias"},
    defaults={**gpt2.FAMILY.defaults, "rotary_dim": 64, "tie_word_embeddings": False}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    aliases=gpt2.FAMILY.aliases,
    only={"scale_attn_weights": (True,)},
    ignored=gpt2.FAMILY.ignored | {"rotary"},
    quirks=(
        *(TIED, ROTARY, one_of("feed", "activation_function", FEED)),
        dropout(("resid_pdrop", "embd_pdrop"), "attn_pdrop"),
    ),
    rows=(*gpt2.FAMILY.rows, Row("lm_head.bias", ("unembed/bias",), "V")),
    layer_rows=(
        *norm("ln_1", "attn_norm"),
        *queries("attn.{}_proj"),
        Row("attn.out_proj.weight", ("attn/o",), "D,NH"),
        *feed("mlp.fc_in", "mlp.fc_out"),
    ),
    heads=decoders.heads("GPTJ", "classes", "spans"),
    head_rows=decoders.SCORE,
    copies=gpt2.FAMILY.copies,
    ignored_tensors=gpt2.FAMILY.ignored_tensors,
)

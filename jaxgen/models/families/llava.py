"""LLaVA (Liu et al. 2023): images in the prompts of a decoder, by CLIP's tower and two layers.

config.json has a part for each of the two. Once it is flat, the tower's settings have names that
begin with tower_. Of the tower the layers up to the one that is read are here: those behind it,
and the norm behind all, change no logit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.models.families import llama
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.known_settings import NEUTRAL
from jaxgen.models.families.quirks import FEED, one_of
from jaxgen.models.families.resolved import value_of
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

MODEL_TYPE, TEXT, TOWER = "llava", "text_config", "vision_config"
BEGIN, TIED, TOWERS = "tower_", "tie_word_embeddings", ("clip_vision_model",)
DEPTH, READ = "tower_num_hidden_layers", "vision_feature_layer"
# What the whole says, and neither part.
WHOLE = ("architectures", "image_token_index", "image_seq_length", "projector_hidden_act", READ)
WHOLE += ("vision_feature_select_strategy", "multimodal_projector_bias", TIED)
LLAMA = llama.FAMILY
# What transformers takes for sizes that a part leaves out, as published folders do.
OF_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008}
OF_LLAMA |= {"num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048}


def flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the decoder, those of the tower as tower_..., and the whole's."""
    if not {TEXT, TOWER} & theirs.keys():
        return dict(theirs)
    text, tower = theirs.get(TEXT), theirs.get(TOWER)
    if not isinstance(text, dict) or not isinstance(tower, dict):
        raise CheckpointError(f"{TEXT} and {TOWER} are no settings of a decoder and a tower")
    own = {f"{BEGIN}{key}": value for key, value in tower.items() if key not in NEUTRAL}
    whole = {key: value for key, value in theirs.items() if key not in (TEXT, TOWER)}
    tied = {TIED: theirs.get(TIED, False) or text.get(TIED, False)}
    return {k: v for k, v in text.items() if k != "architectures"} | own | whole | tied


def deep(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with its parts of a flat one."""
    tower = {k.removeprefix(BEGIN): v for k, v in theirs.items() if k.startswith(BEGIN)}
    text = {k: v for k, v in theirs.items() if k not in WHOLE and not k.startswith(BEGIN)}
    whole = {key: theirs[key] for key in WHOLE} | {"model_type": MODEL_TYPE}
    tower |= {"model_type": TOWERS[0]}
    return whole | {TEXT: text | {"model_type": "llama", TIED: theirs[TIED]}, TOWER: tower}


def _depth(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many layers of the tower are behind the vectors that are read."""
    count, layer = theirs[DEPTH], theirs[READ]
    if type(layer) is not int or type(count) is not int:
        raise CheckpointError(f"{READ}={layer!r:.40} of {count!r:.40} layers is not known here")
    layers = layer if layer >= 0 else count + 1 + layer
    if not 1 <= layers <= count:
        raise CheckpointError(f"{READ}={layer} is none of the {count} layers of {TOWER}")
    return {"vision.layers": layers}


def _ignored(tower: str) -> tuple[str, ...]:
    names = ("encoder.layers.*", "post_layernorm.*", "embeddings.position_ids")
    return tuple(f"{tower}.{name}" for name in names)


def _square(theirs: str, ours: str) -> tuple[Row, ...]:
    bias = Row(f"{theirs}.bias", (f"{ours}_bias",), "D")
    return Row(f"{theirs}.weight", (ours,), "O,D"), bias


LANGUAGE, SEEING = "language_model.", "vision_tower.vision_model"
SIZES = {
    "vision.token": "image_token_index",
    "vision.d_model": "tower_hidden_size",
    "vision.heads": "tower_num_attention_heads",
    "vision.d_ff": "tower_intermediate_size",
    "vision.norm_epsilon": "tower_layer_norm_eps",
    "vision.stem.size": "tower_image_size",
    "vision.stem.patch": "tower_patch_size",
    "vision.stem.channels": "tower_num_channels",
}
FAMILY = Family(
    model_type="llava-llama",
    architecture="LlavaForConditionalGeneration",
    prefix="",
    layer=f"{LANGUAGE}{LLAMA.layer}",
    encoder=f"{SEEING}.encoder.layers.{{}}.",
    flat=flat,
    deep=deep,
    called={
        key: f"{TOWER}.{key.removeprefix(BEGIN)}"
        for key in (*SIZES.values(), DEPTH)
        if key.startswith(BEGIN)
    },
    sizes={**LLAMA.sizes, **SIZES},
    choices={
        **LLAMA.choices,
        "vision.stem.kind": "patches",
        "vision.stem.first": "learned",
        "vision.stem.bias": "none",
        "vision.stem.norm": "norm",
        "vision.norm": "none",
    },
    defaults={
        **LLAMA.defaults,
        **OF_LLAMA,
        DEPTH: 12,
        "tower_hidden_size": 768,
        "tower_num_attention_heads": 12,
        "tower_intermediate_size": 3072,
        "tower_layer_norm_eps": 1e-5,
        "tower_image_size": 224,
        "tower_patch_size": 32,
        "tower_num_channels": 3,
        "tower_hidden_act": "quick_gelu",
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_select_strategy": "default",
        READ: -2,
    },
    aliases={**LLAMA.aliases, "image_token_id": "image_token_index"},
    only=LLAMA.only,
    # A text tower's sizes, and what training leaves out.
    ignored=LLAMA.ignored | {"tower_projection_dim", "tower_vocab_size", "ignore_index"},
    quirks=(
        *LLAMA.quirks,
        Quirk(
            (DEPTH, READ),
            _depth,
            lambda config: {DEPTH: value_of(config, "vision.layers"), READ: -1},
        ),
        Quirk(
            ("image_seq_length",),
            lambda theirs: {},
            lambda config: {"image_seq_length": value_of(config, "vision.vectors")},
        ),
        one_of("vision.feed", "tower_hidden_act", FEED),
        one_of("vision.activation", "projector_hidden_act", FEED),
        one_of("vision.bias", "multimodal_projector_bias", {True: "bias", False: "none"}),
        one_of(
            "vision.kept", "vision_feature_select_strategy", {"default": "patches", "full": "all"}
        ),
    ),
    rows=(
        *(row._replace(theirs=f"{LANGUAGE}{row.theirs}") for row in LLAMA.rows),
        Row(f"{SEEING}.embeddings.class_embedding", ("vision/stem/first",), "SD"),
        Row(f"{SEEING}.embeddings.patch_embedding.weight", ("vision/stem/patches",), "D,M,W,X"),
        Row(f"{SEEING}.embeddings.position_embedding.weight", ("vision/stem/positions",), "S,D"),
        *norm(f"{SEEING}.pre_layrnorm", "vision/stem/norm"),
        *_square("multi_modal_projector.linear_1", "vision/project_in"),
        *_square("multi_modal_projector.linear_2", "vision/project_out"),
    ),
    layer_rows=LLAMA.layer_rows,
    encoder_rows=(
        *norm("layer_norm1", "attn_norm"),
        *queries("self_attn.{}_proj"),
        *linear("self_attn.out_proj", "attn/o", "D,NH"),
        *norm("layer_norm2", "feed_norm"),
        *feed("mlp.fc1", "mlp.fc2"),
    ),
    copies={f"{LANGUAGE}{one}": f"{LANGUAGE}{other}" for one, other in LLAMA.copies.items()},
    renamed={
        "model.language_model.": f"{LANGUAGE}model.",
        "lm_head.": f"{LANGUAGE}lm_head.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.vision_tower.": "vision_tower.",
        **{
            f"vision_tower.{part}": f"{SEEING}.{part}"
            for part in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
        },
    },
    ignored_tensors=(
        *(f"{LANGUAGE}{name}" for name in LLAMA.ignored_tensors),
        *_ignored(SEEING),
    ),
)


def check_parts(theirs: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the parts of a config.json are a decoder and a tower known."""
    for part, kinds, default in ((TEXT, ("llama",), "llama"), (TOWER, TOWERS, TOWERS[0])):
        own = theirs.get(part)
        kind = own.get("model_type", default) if isinstance(own, dict) else None
        if kind not in kinds:
            raise CheckpointError(
                f"{part}.model_type={kind!r:.60} is not known in {MODEL_TYPE}; known is "
                f"{kinds[0]!r}"
            )

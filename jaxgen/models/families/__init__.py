"""Families of published models as data: sizes, names of settings and weights, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxgen.errors import CheckpointError, nearest
from jaxgen.models.families import (
    albert,
    bart,
    bert,
    blenderbot,
    blenderbot_small,
    bloom,
    camembert,
    cohere,
    cohere2,
    deberta_v2,
    deepseek_v2,
    deepseek_v3,
    distilbert,
    electra,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    gemma4_unified,
    glm4_moe,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granitemoe,
    helium,
    llama,
    llama4,
    llava,
    m2m_100,
    marian,
    mbart,
    minicpm3,
    ministral3,
    mistral,
    mixtral,
    modernbert,
    modernbert_decoder,
    mpnet,
    mpt,
    mt5,
    nanochat,
    olmo2,
    olmo3,
    olmoe,
    opt,
    pegasus,
    phi,
    phi3,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    roberta,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    t5gemma,
    umt5,
    vanilla,
    vision_encoder_decoder,
    vit_gpt2,
    vit_trocr,
    whisper,
    xlm_roberta,
)
from jaxgen.models.families.family import Family
from jaxgen.models.families.multimodal import PARTS, text_config
from jaxgen.models.families.resolved import MOST_NAMED, LacksError

# In this order an export looks for the first family that can say all of a config.
_ALL = (
    *(gpt2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3),
    *(smollm3, olmo2, granite, seed_oss, helium, phi, phi3, gptj, starcoder2, cohere, cohere2),
    *(deepseek_v2, deepseek_v3, minicpm3, qwen3_next, qwen3_5),
    *(nanochat, stablelm, gpt_neox, bloom, falcon, opt, mpt, exaone4, olmo3, ministral3),
    *(mixtral, qwen2_moe, qwen3_moe, olmoe, gpt_oss, granitemoe, glm4_moe, qwen3_5_moe),
    *(phimoe, llama4),
    *(bert, roberta, distilbert, mpnet, electra, albert, deberta_v2, xlm_roberta, camembert),
    *(modernbert, modernbert_decoder),
    *(gemma3n, gemma4, gemma4_unified),
    llava,
    *(t5, bart, marian, vanilla),
    *(mt5, umt5, mbart, pegasus, m2m_100, blenderbot, blenderbot_small, t5gemma),
    *(whisper, vit_gpt2, vit_trocr),
)
IMAGES = frozenset(("image_size", "num_channels", "vision_config"))  # keys of models of images
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in _ALL}


def named(model_type: object, where: str) -> Family:
    """Return the family of a Hugging Face model_type; CheckpointError that lists the known ones."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        # Names are short, and many: mamba is not near mbart.
        hint = nearest(str(model_type), [*FAMILIES, *PARTS], cutoff=0.75)
        raise CheckpointError(
            f"{where}: model_type={model_type!r:.60} is no known family{hint}; known are {_kinds()}"
        )
    return FAMILIES[model_type]


def _kinds() -> str:
    """Return the names of all families by what they are."""
    words = {"decoder": "decoders", "encoder": "encoders", "encoder_decoder": "encoder-decoders"}
    found: dict[str, list[str]] = {word: [] for word in words.values()}
    for name, family in FAMILIES.items():
        found[words[family.choices.get("topology", "decoder")]].append(name)
    found["the language models in these"] = [*PARTS]
    return "; ".join(f"{', '.join(names)} ({word})" for word, names in found.items())


def nearest_of(reasons: Mapping[str, CheckpointError]) -> str:
    """Return what the one of several that lacks least of a config says, and who says the same."""
    lacking = {name: e for name, e in reasons.items() if isinstance(e, LacksError)} or reasons
    least = min(lacking, key=lambda name: len(getattr(lacking[name], "lost", ())))
    reason = str(lacking[least]).removeprefix(f"{least} ")
    same = [name for name, e in lacking.items() if str(e).removeprefix(f"{name} ") == reason]
    more = f" and {len(same) - MOST_NAMED} more" if len(same) > MOST_NAMED else ""
    return f"the nearest ({', '.join(same[:MOST_NAMED])}{more}) {reason}"


def of_folder(theirs: Mapping[str, Any], where: str) -> tuple[Family, Mapping[str, Any]]:
    """Return (family, settings) of a config.json; of several parts the language model's.

    Raises CheckpointError for a model_type that is not known.
    """
    kind = theirs.get("model_type")
    if kind == vision_encoder_decoder.MODEL_TYPE:
        towers = [theirs.get(part) for part in vision_encoder_decoder.PARTS]
        names = [str(one.get("model_type")) if isinstance(one, dict) else "none" for one in towers]
        return named("-".join(names), f"{where}: encoder-decoder of {kind}"), theirs
    if kind == llava.MODEL_TYPE:
        try:
            llava.check_parts(theirs)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        return llava.FAMILY, theirs
    if kind not in (*FAMILIES, *PARTS) and not IMAGES.isdisjoint(theirs):
        raise CheckpointError(
            f"{where}: model_type={kind!r:.60} reads images, and no family of these is built; "
            f"known are {_kinds()}"
        )
    if not isinstance(kind, str) or kind not in PARTS:
        return named(kind, where), theirs
    try:
        text = text_config(theirs)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    family = named(text.get("model_type"), f"{where}: text_config")
    renamed, left_out = PARTS[kind]
    return replace(family, renamed=renamed, left_out=left_out), text

"""A model written in the Hugging Face layout, so that `transformers` opens it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen import files, tree
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.models import api
from jaxgen.models.families import FAMILIES, nearest_of
from jaxgen.models.families.family import Family
from jaxgen.models.families.weights import Theirs, table
from jaxgen.pretrained import coded, compressed_tensors
from jaxgen.pretrained.chat_template import FOLDER, TEMPLATE, TOKENIZER, ChatTemplate
from jaxgen.pretrained.generation_config import GENERATION, GenerationConfig, to_hub
from jaxgen.pretrained.hub_read import CONFIG, INDEX, WEIGHTS
from jaxgen.pretrained.preprocessor import PREPROCESSOR, PROCESSOR, prompts_of, settings_of
from jaxgen.store import safetensors
from jaxgen.tokens import Tokenizer
from jaxgen.tokens.huggingface import HuggingFace

SHARD = 5_000_000_000  # bytes of a weight file, as transformers cuts them


def family_of(config: ModelConfig, model_type: str | None = None) -> tuple[Family, dict[str, Any]]:
    """Return (family, config.json) for a config: of model_type, or the first that can say it all.

    Raises ConfigError if no family can, with what each lacks.
    """
    if model_type is not None and model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(
            f"family {model_type!r} is unknown{nearest(model_type, FAMILIES)}; there are {known}"
        )
    reasons = {}
    opened = [family for family in FAMILIES.values() if family.library == "transformers"]
    for family in opened if model_type is None else (FAMILIES[model_type],):
        try:
            return family, family.write(config)
        except CheckpointError as error:
            reasons[family.model_type] = error
    raise ConfigError(f"no Hugging Face family has such a model: {nearest_of(reasons)}")


def write_hub(
    draft: Path,
    config: ModelConfig,
    params: api.Params,
    *,
    tokenizer: Tokenizer | None,
    generation_config: GenerationConfig,
    model_type: str | None = None,
    shard: int = SHARD,
) -> None:
    """Write the files of a model into an empty folder, one tensor in memory at a time."""
    family, settings = family_of(config, model_type)
    special = {} if tokenizer is None else vars(tokenizer.special)
    ids = {f"{name}_token_id": special.get(name) for name in ("bos", "eos", "pad")}
    there = {name: value for name, value in ids.items() if value is not None}
    about, generation = to_hub(generation_config)
    # RoBERTa's positions begin after its padding id, so that one is the family's to say.
    fixed = {name: settings[name] for name in ids if name in settings}
    settings |= ids | dict(family.absent) | there | _roles(tokenizer, config) | about | fixed
    wanted, flat = table(family, config), tree.flatten(params)
    quantisation = compressed_tensors.describe(wanted, flat, sites(config))
    about = settings | {"torch_dtype": config.param_dtype} | quantisation
    files.write_json(draft / CONFIG, about)
    files.write_json(draft / GENERATION, there | generation)
    if config.stem is not None and (front := settings_of(config.stem)):
        files.write_json(draft / PREPROCESSOR, front)
    if (vision := config.vision) is not None:
        kind = {"processor_class": "LlavaProcessor"}
        files.write_json(draft / PREPROCESSOR, settings_of(vision.stem) | kind)
        files.write_json(draft / PROCESSOR, prompts_of(vision) | kind)
    _write_weights(draft, wanted, flat, config, shard)
    if tokenizer is not None:
        _write_tokenizer(draft, tokenizer, config)


def _roles(tokenizer: Tokenizer | None, config: ModelConfig) -> dict[str, int]:
    """Return the ids that the config.json of an encoder names beside those of every model."""
    if config.topology != "encoder" or not isinstance(tokenizer, HuggingFace):
        return {}
    known = tokenizer.vocabulary()
    ids = {role: known.get(tokenizer.roles.get(role, "")) for role in ("cls_token", "sep_token")}
    return {f"{role}_id": i for role, i in ids.items() if i is not None and i < config.V}


def _write_weights(
    draft: Path, wanted: dict[str, Theirs], flat: dict[str, Any], config: ModelConfig, shard: int
) -> None:
    """Write safetensors files of about `shard` bytes, one tensor in memory at a time."""
    by_path, dtype = sites(config), config.param_dtype
    groups: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    homes, room = {}, shard
    for name, theirs in wanted.items():
        codes = compressed_tensors.linear_codes(theirs, flat, by_path)
        shapes = {name: (dtype, theirs.shape)}
        if codes is not None:
            arrays = compressed_tensors.arrays(name, codes)
            shapes = {part: (array.dtype.name, array.shape) for part, array in arrays.items()}
        size = sum(jnp.dtype(kind).itemsize * math.prod(shape) for kind, shape in shapes.values())
        if groups[-1] and size > room:
            groups.append({})
            room = shard
        room -= size
        groups[-1] |= shapes
        homes |= dict.fromkeys(shapes, name)

    def produce(name: str) -> np.ndarray:
        theirs = wanted[homes[name]]
        codes = compressed_tensors.linear_codes(theirs, flat, by_path)
        if codes is not None:
            return compressed_tensors.arrays(homes[name], codes)[name]
        return coded.numbers(theirs, flat, by_path, jnp.dtype(dtype))

    where = {}
    for number, group in enumerate(groups, 1):
        name = WEIGHTS
        if len(groups) > 1:
            name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        safetensors.write_safetensors(draft / name, group, produce, {"format": "pt"})
        where |= dict.fromkeys(group, name)
    if len(groups) > 1:
        shapes = [shape for group in groups for shape in group.values()]
        total = sum(jnp.dtype(kind).itemsize * math.prod(shape) for kind, shape in shapes)
        files.write_json(draft / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_tokenizer(draft: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Write the tokenizer as a tokenizer.json, Marian's as its own three files."""
    from jaxgen.tokens.export import tokenizer_json
    from jaxgen.tokens.marian import SOURCE, Marian

    about: dict[str, Any] = {"model_max_length": config.context}
    if isinstance(tokenizer, Marian):
        for name, content in tokenizer.parts().items():
            (draft / name).write_bytes(content)
        named = "MarianTokenizer" if SOURCE in tokenizer.parts() else "M2M100Tokenizer"
        files.write_json(draft / TOKENIZER, about | {"tokenizer_class": named})
        return
    exported = tokenizer_json(tokenizer, rows=config.V, topology=config.topology)
    (draft / "tokenizer.json").write_bytes(exported.file)
    # The class that reads a tokenizer.json as it is; the others build their own of its vocabulary.
    about |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if config.embed.types > 1:  # which that class leaves out by itself
        about |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    files.write_json(draft / TOKENIZER, exported.roles | about)


def write_template(draft: Path, template: ChatTemplate) -> None:
    """Write a chat template, and the pieces it calls by name, where transformers looks for them."""
    if template.source:
        (draft / TEMPLATE).write_text(template.source, encoding="utf-8", newline="")
    for name, source in (template.others or {}).items():
        (draft / FOLDER).mkdir(exist_ok=True)
        (draft / FOLDER / f"{name}.jinja").write_text(source, encoding="utf-8", newline="")
    path = draft / TOKENIZER
    about = json.loads(path.read_bytes()) if path.exists() else {}
    files.write_json(path, dict(template.names) | about)

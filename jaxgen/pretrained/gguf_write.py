"""A model written as a GGUF file, which llama.cpp and the programs around it open."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgen import tree
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import api
from jaxgen.models.families import FAMILIES, nearest_of
from jaxgen.models.families.resolved import LacksError, differences
from jaxgen.models.families.weights import Theirs, table
from jaxgen.pretrained import coded, gguf_names, gguf_read
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.pretrained.gguf_architecture import Architecture
from jaxgen.pretrained.gguf_config import (
    LONGROPE,
    ROPE_FACTORS,
    read_family,
    rope_factors,
    write_keys,
)
from jaxgen.pretrained.gguf_keys import Json
from jaxgen.pretrained.gguf_names import SQUARE
from jaxgen.pretrained.gguf_read import ENDS, SAMPLING
from jaxgen.pretrained.gguf_rows import EXACT, RATE
from jaxgen.pretrained.gguf_tokenizer import HOME, read_tokenizer
from jaxgen.pretrained.gguf_tokenizer_write import write_tokenizer
from jaxgen.store import gguf
from jaxgen.store.gguf_blocks import FORMATS, pack
from jaxgen.tokens import Tokenizer

Form = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]  # of matrices
FORMS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type
TABLES = ("token_embd.weight", "output.weight")
# What a tokenizer that was written must encode as the one that it was made of.
PROBES = (
    "The quick brown fox doesn't jump over 12345 dogs, it's 3 o'clock.",
    "def f(x):\n    return x + 1  # naïve café\n\n\tclass A: pass",
    "日本語 ÜBER éa  two  spaces; I'LL (see) [it]…",
)


def architecture_of(config: ModelConfig) -> tuple[Architecture, Json]:
    """Return (what a GGUF file calls a model, config.json of its family).

    Raises ConfigError with what the nearest architecture lacks if none has such a model.
    """
    reasons = {}
    for one in gguf_names.ARCHITECTURES:
        if not one.written:
            continue
        try:
            family = FAMILIES[one.family]
            settings = family.write(config)
            others = [f"{k}={settings.get(k)!r:.40}" for k, v in one.settings.items()
                      if k != "architectures" and settings.get(k) != v]  # fmt: skip
            named = one.settings.get("architectures", [family.architecture])[0]
            if not family.can_be(named, config.topology):
                others.append(f"topology={config.topology}")
            if one.name in SQUARE and config.heads * config.H != config.d_model:
                others.append(f"head_dim={config.H}")
            if not others:
                return one, settings
            raise LacksError(one.name, others)
        except LacksError as error:
            reasons[one.name] = LacksError(one.name, error.lost)
        except CheckpointError as error:
            reasons[one.name] = error
    raise ConfigError(f"no architecture of GGUF files has such a model: {nearest_of(reasons)}")


def write_model(
    draft: Path,
    config: ModelConfig,
    params: api.Params,
    *,
    tokenizer: Tokenizer | None,
    generation_config: GenerationConfig,
    chat_template: ChatTemplate | None,
    form: Form | None,
) -> None:
    """Write a model as a GGUF file, one tensor in memory at a time.

    form: of its matrices, a key of FORMS; None: config.param_dtype, but of weights that are
    quantised symmetrically, in groups of whole blocks, these blocks with the same integers. Raises
    ConfigError if the file can't say all of the config or of the tokenizer.
    """
    architecture, settings = architecture_of(config)
    name = architecture.name
    kind = FORMS[form or config.param_dtype]
    metadata: Json = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": np.uint32(FILE_TYPES[kind]),
        "general.quantization_version": np.uint32(2),
        **write_keys(architecture, settings, config),
        **({} if tokenizer is None else write_tokenizer(tokenizer, config)),
        **_generation(generation_config, config, name),
        **_templates(chat_template),
    }
    if config.embed.types:
        metadata[f"{HOME}token_type_count"] = np.uint32(config.embed.types)
    if tokenizer is None:
        metadata |= {f"{HOME}model": "none", f"{name}.vocab_size": np.uint32(config.V)}
    wanted, flat = table(architecture.named_family(), config), tree.flatten(params)
    by_path = sites(config)
    blocks = {n: _blocks(theirs, flat, by_path, form) for n, theirs in wanted.items()}
    forms = {
        n: (blocks[n] or _form(n, theirs.shape, kind), theirs.shape) for n, theirs in wanted.items()
    }
    if form is None and (block_kinds := {"Q4_0", "Q8_0"} & {kind for kind, _ in forms.values()}):
        metadata["general.file_type"] = np.uint32(FILE_TYPES[min(block_kinds)])
    factors = _rope_factors(config, settings)
    forms |= {key: ("F32", array.shape) for key, array in factors.items()}

    def produce(key: str) -> np.ndarray:
        if key in factors:
            return factors[key]
        heads = gguf_read.turned(key, architecture, config.heads, config.K)
        codes = coded.gather(wanted[key], flat, by_path) if blocks[key] else None
        if codes is not None:
            return pack(_turn(codes.integers, heads), _turn(codes.scale, heads), forms[key][0])
        array = _turn(coded.numbers(wanted[key], flat, by_path, np.float32), heads)
        if key.endswith(RATE):
            return -np.exp(array)
        more = gguf_read.offset(key, architecture)
        return array + np.float32(more) if more else array

    gguf.write_gguf(draft, metadata, forms, produce)
    _check(draft, name, config, tokenizer)


def _turn(array: np.ndarray, heads: int) -> np.ndarray:
    """Return rows with the halves of each head interleaved; heads: how many, 0 for rows as is."""
    if not heads:
        return array
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _blocks(theirs: Theirs, flat: Json, by_path: coded.Sites, form: Form | None) -> str | None:
    """Return which blocks a tensor's integers become; None if it is written as numbers."""
    codes = coded.gather(theirs, flat, by_path) if form in (None, "q8_0", "q4_0") else None
    if codes is None or codes.zero is not None or codes.group % FORMATS["Q8_0"].values:
        return None
    stored = "Q4_0" if codes.bits == 4 else "Q8_0"  # whose scales are float16
    if codes.scale.max() > np.finfo(np.float16).max or (stored == "Q8_0" and form == "q4_0"):
        return None
    return stored if form is None else FORMS[form]


def _check(draft: Path, name: str, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """Raise ConfigError unless the file says of config and tokenizer what they are."""
    family, theirs = read_family(draft)
    again = family.read(theirs)
    again = again.replace(head="none") if again.head == "pooled" else again
    if lost := differences(*(one.replace(rope=_as_stored(one.rope)) for one in (config, again))):
        raise ConfigError(f"a GGUF file of the architecture {LacksError(name, lost)}")
    if tokenizer is None:
        return
    read = read_tokenizer(draft)
    for text in PROBES:
        if read.encode(text) != list(tokenizer.encode(text)):
            raise ConfigError(
                f"the tokenizer cuts {text!r} in a way that a GGUF file has no word for; give "
                f"another tokenizer, or write the model for Hugging Face: --to hf"
            )


def _rope_factors(config: ModelConfig, settings: Json) -> dict[str, np.ndarray]:
    """Return the tensors of what the frequencies of pairs are divided by."""
    scaling = settings.get("rope_scaling") or {}
    factors: dict[str, Any] = {}
    if scaling.get("rope_type") == "llama3":
        factors[ROPE_FACTORS] = rope_factors(settings["rope_theta"], config.H // 2, scaling)
    if scaling.get("rope_type") == "longrope":
        factors |= {name: scaling[key] for key, name in LONGROPE.items()}
    return {name: np.asarray(values, np.float32) for name, values in factors.items()}


def _as_stored(value: Any) -> Any:
    """Return a group of a config with its numbers as 32 bits have them."""
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, tuple):
        return tuple(map(_as_stored, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _as_stored(one) for name, one in vars(value).items()})
    return value


def _form(name: str, shape: tuple[int, ...], kind: str) -> str:
    """Return the format of a tensor: vectors are F32, and rows of no whole blocks F16."""
    if len(shape) == 1 or name.endswith((*EXACT, ".bias")):
        return "F32"
    if kind == "Q4_0" and name in TABLES:  # which 4 bits would harm the most
        kind = "Q8_0"
    return "F16" if shape[-1] % FORMATS[kind].values else kind


def _generation(config: GenerationConfig, model: ModelConfig, name: str) -> Json:
    keys: Json = {}
    if (start := config.decoder_start_token_id) is not None and model.topology == "encoder_decoder":
        keys[f"{name}.decoder_start_token_id"] = np.uint32(start)
    for key, value in zip(ENDS, config.eos_token_id, strict=False):
        keys[HOME + key] = np.uint32(value)
    if config.bos_token_id is not None:
        keys[f"{HOME}bos_token_id"] = np.uint32(config.bos_token_id)
    if config.pad_token_id is not None:
        keys[f"{HOME}padding_token_id"] = np.uint32(config.pad_token_id)
    said = {name: getattr(config, key) for name, key in SAMPLING.items()}
    if config.do_sample is not None:  # which is said by a temperature, if by anything
        said["temp"] = (said["temp"] or 1.0) if config.do_sample else 0.0
    for name, value in said.items():
        if value is not None:
            whole = isinstance(value, int)
            keys[f"general.sampling.{name}"] = np.int32(value) if whole else np.float32(value)
    return keys


def _templates(template: ChatTemplate | None) -> Json:
    if template is None:
        return {}
    home, others = "tokenizer.chat_template", dict(template.others or {})
    keys: Json = {home: template.source} if template.source else {}
    keys |= {f"{home}.{name}": source for name, source in others.items()}
    return keys | ({f"{home}s": list(others)} if others else {})

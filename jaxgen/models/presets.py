"""Named architectures; sizes as published."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxgen import arguments
from jaxgen.config import ModelConfig
from jaxgen.config_groups import RENAMED, LayerKind, Rope, RopeScaling, Scores
from jaxgen.config_parts import Embed
from jaxgen.errors import ConfigError, nearest

_GPT2: dict[str, Any] = {"vocab_size": 50257, "dropout": 0.1}
_LLAMA: dict[str, Any] = {
    "norm": "rms",
    "positions": "rope",
    "feed": "swiglu",
    "biases": "none",
}

_HALF: dict[str, Any] = {"compute_dtype": "bfloat16"}
_LLAMA2 = _LLAMA | _HALF | {"vocab_size": 32000, "context": 4096, "output": "untied"}
_LLAMA3 = _LLAMA2 | {"vocab_size": 128256, "context": 8192, "kv_heads": 8}
_LLAMA3 |= {"rope": Rope(theta=5e5)}


def _sizes(layers: int, d_model: int, heads: int, d_ff: int, **more: Any) -> dict[str, Any]:
    return {"layers": layers, "d_model": d_model, "heads": heads, "d_ff": d_ff, **more}


def _llama31(factor: float) -> dict[str, Any]:
    stretched = RopeScaling(kind="llama3", factor=factor, original_context=8192)
    return {"context": 131072, "rope": Rope(theta=5e5, scaling=stretched)}


_QWEN2 = _LLAMA2 | {"vocab_size": 152064, "context": 32768, "biases": "qkv"}
_QWEN2 |= {"norm_epsilon": 1e-6, "rope": Rope(theta=1e6)}
_QWEN3 = _QWEN2 | {"vocab_size": 151936, "context": 40960, "biases": "none", "qk_norm": "head"}
_QWEN3 |= {"kv_heads": 8, "head_dim": 128}
_ROOT = Embed(scale="root")
_GEMMA = _LLAMA | _HALF | {"norm": "rms_offset", "feed": "geglu", "embed": _ROOT}
_GEMMA |= {"vocab_size": 256000, "context": 8192, "norm_epsilon": 1e-6, "head_dim": 256}
_GEMMA2 = _GEMMA | {"norm_at": "both", "pattern": ("local", "global"), "window": 4096}
_GEMMA2 |= {"scores": Scores(cap=50.0, query_scalar=256.0), "logit_cap": 30.0}
_GEMMA3 = _GEMMA | {"norm_at": "both", "pattern": ("local",) * 5 + ("global",), "window": 1024}
_GEMMA3 |= {"vocab_size": 262208, "context": 131072, "qk_norm": "head"}
_GEMMA3 |= {"rope": Rope(theta=1e6), "kinds": {"local": LayerKind(rope=Rope(theta=1e4))}}
_GEMMA3 |= {"scores": Scores(query_scalar=256.0)}
_LINEAR8 = {"rope": Rope(theta=1e6, scaling=RopeScaling(kind="linear", factor=8.0))}
_BERT: dict[str, Any] = {
    "topology": "encoder",
    "head": "mlm",
    "norm_at": "post",
    "embed": Embed(norm="norm", types=2),
    "vocab_size": 30522,
    "context": 512,
    "norm_epsilon": 1e-12,
    "feed": "gelu",
    "output_bias": "bias",
    "dropout": 0.1,
}
_ROBERTA = _BERT | {"vocab_size": 50265, "norm_epsilon": 1e-5}
_ROBERTA |= {"embed": Embed(norm="norm", types=1, offset=2)}
_T5: dict[str, Any] = {
    "topology": "encoder_decoder",
    "norm": "rms",
    "positions": "relative",
    "biases": "none",
    "vocab_size": 32128,
    "context": 512,
    "norm_epsilon": 1e-6,
    "scores": Scores(query_scalar=1.0),
    "head_dim": 64,
    "dropout": 0.1,
}
_T5_10 = _T5 | {"feed": "relu", "output_scale": "root"}
_T5_11 = _T5 | {"feed": "geglu", "output": "untied"}
_BART: dict[str, Any] = {
    "topology": "encoder_decoder",
    "norm_at": "post",
    "embed": Embed(norm="norm", offset=2),
    "feed": "gelu",
    "vocab_size": 50265,
    "context": 1024,
    "output_bias": "bias",
    "dropout": 0.1,
}
_MARIAN: dict[str, Any] = {
    "topology": "encoder_decoder",
    "norm_at": "post",
    "positions": "sinusoid",
    "vocab_size": 58101,
    "context": 512,
    "embed": _ROOT,
    "feed": "silu",
    "output_bias": "bias",
    "dropout": 0.1,
}
_VANILLA: dict[str, Any] = {
    "topology": "encoder_decoder",
    "norm_at": "post",
    "positions": "sinusoid",
    "vocab_size": 37000,
    "context": 512,
    "embed": _ROOT,
    "feed": "relu",
    "dropout": 0.1,
}

_NOPE = {"global_nope": LayerKind(positions="none")}
_PHI = _HALF | {"positions": "rope", "parallel": "one_norm", "output": "untied"}
_PHI |= {"vocab_size": 51200, "context": 2048, "output_bias": "bias", "rope": Rope(share=0.4)}
_PYTHIA = _HALF | {"positions": "rope", "parallel": "two_norms", "output": "untied", "feed": "gelu"}
_PYTHIA |= {"vocab_size": 50304, "context": 2048, "rope": Rope(share=0.25)}

PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019
    "gpt2-124m": _GPT2,
    "gpt2-355m": _GPT2 | _sizes(24, 1024, 16, 4096),
    "gpt2-774m": _GPT2 | _sizes(36, 1280, 20, 5120),
    "gpt2-1.5b": _GPT2 | _sizes(48, 1600, 25, 6400),
    # Brown et al. 2020; its layers with banded attention are computed in full here
    "gpt3-175b": _GPT2 | _HALF | _sizes(96, 12288, 96, 49152, context=2048),
    # Touvron et al. 2023
    "llama-2-7b": _LLAMA2 | _sizes(32, 4096, 32, 11008),
    "llama-2-13b": _LLAMA2 | _sizes(40, 5120, 40, 13824),
    "llama-2-70b": _LLAMA2 | _sizes(80, 8192, 64, 28672, kv_heads=8),
    # Meta 2024
    "llama-3-8b": _LLAMA3 | _sizes(32, 4096, 32, 14336),
    "llama-3-70b": _LLAMA3 | _sizes(80, 8192, 64, 28672),
    "llama-3.1-8b": _LLAMA3 | _llama31(8.0) | _sizes(32, 4096, 32, 14336),
    "llama-3.1-70b": _LLAMA3 | _llama31(8.0) | _sizes(80, 8192, 64, 28672),
    "llama-3.1-405b": _LLAMA3 | _llama31(8.0) | _sizes(126, 16384, 128, 53248),
    "llama-3.2-1b": _LLAMA3 | _llama31(32.0) | _sizes(16, 2048, 32, 8192, output="tied"),
    "llama-3.2-3b": _LLAMA3 | _llama31(32.0) | _sizes(28, 3072, 24, 8192, output="tied"),
    # Hugging Face 2025
    "smollm2-135m": _LLAMA2
    | _sizes(30, 576, 9, 1536, kv_heads=3, output="tied")
    | {"vocab_size": 49152, "context": 8192, "rope": Rope(theta=1e5)},
    "smollm3-3b": _LLAMA3
    | _sizes(36, 2048, 16, 11008, kv_heads=4, output="tied")
    | {"context": 65536, "norm_epsilon": 1e-6, "rope": Rope(theta=5e6)}
    | {"pattern": ("global",) * 3 + ("global_nope",), "kinds": _NOPE},
    # Ai2 2024 (version 2), Microsoft 2023, Biderman et al. 2023
    "olmo-2-1b": _LLAMA2
    | _sizes(16, 2048, 16, 8192, vocab_size=100352)
    | {"norm_at": "out", "qk_norm": "heads", "rope": Rope(theta=5e5), "norm_epsilon": 1e-6},
    "phi-2": _PHI | _sizes(32, 2560, 32, 10240),
    "pythia-160m": _PYTHIA | _sizes(12, 768, 12, 3072),
    # Jiang et al. 2023: version 0.1
    "mistral-7b": _LLAMA2
    | _sizes(32, 4096, 32, 14336, kv_heads=8)
    | {"context": 32768, "pattern": ("local",), "window": 4096},
    # Yang et al. 2024 (2.5), 2025
    "qwen2.5-0.5b": _QWEN2
    | _sizes(24, 896, 14, 4864, kv_heads=2, output="tied", vocab_size=151936),
    "qwen2.5-7b": _QWEN2 | _sizes(28, 3584, 28, 18944, kv_heads=4),
    "qwen3-0.6b": _QWEN3 | _sizes(28, 1024, 16, 3072, output="tied"),
    "qwen3-8b": _QWEN3 | _sizes(36, 4096, 32, 12288),
    # Google 2024, 2025
    "gemma-2b": _GEMMA | _sizes(18, 2048, 8, 16384, kv_heads=1),
    "gemma-7b": _GEMMA | _sizes(28, 3072, 16, 24576),
    "gemma-2-2b": _GEMMA2 | _sizes(26, 2304, 8, 9216, kv_heads=4),
    "gemma-2-9b": _GEMMA2 | _sizes(42, 3584, 16, 14336, kv_heads=8),
    "gemma-2-27b": _GEMMA2
    | _sizes(46, 4608, 32, 36864, kv_heads=16, head_dim=128)
    | {"scores": Scores(cap=50.0, query_scalar=144.0)},
    "gemma-3-1b": _GEMMA3
    | _sizes(26, 1152, 4, 6912, kv_heads=1)
    | {"vocab_size": 262144, "context": 32768, "window": 512},
    "gemma-3-4b": _GEMMA3 | _LINEAR8 | _sizes(34, 2560, 8, 10240, kv_heads=4),
    "gemma-3-12b": _GEMMA3 | _LINEAR8 | _sizes(48, 3840, 16, 15360, kv_heads=8),
    "gemma-3-27b": _GEMMA3
    | _LINEAR8
    | _sizes(62, 5376, 32, 21504, kv_heads=16, head_dim=128)
    | {"scores": Scores(query_scalar=168.0)},
    # Devlin et al. 2018 (uncased), Liu et al. 2019
    "bert-base": _BERT,
    "bert-large": _BERT | _sizes(24, 1024, 16, 4096),
    "roberta-base": _ROBERTA,
    "roberta-large": _ROBERTA | _sizes(24, 1024, 16, 4096),
    # Raffel et al. 2019
    "t5-small": _T5_10 | _sizes(6, 512, 8, 2048),
    "t5-base": _T5_10 | _sizes(12, 768, 12, 3072),
    "t5-large": _T5_10 | _sizes(24, 1024, 16, 4096),
    "t5-3b": _T5_10 | _sizes(24, 1024, 32, 16384, head_dim=128),
    "t5-11b": _T5_10 | _sizes(24, 1024, 128, 65536, head_dim=128),
    "t5-v1.1-small": _T5_11 | _sizes(8, 512, 6, 1024),
    "t5-v1.1-base": _T5_11 | _sizes(12, 768, 12, 2048),
    "t5-v1.1-large": _T5_11 | _sizes(24, 1024, 16, 2816),
    "t5-v1.1-xl": _T5_11 | _sizes(24, 2048, 32, 5120),
    "t5-v1.1-xxl": _T5_11 | _sizes(24, 4096, 64, 10240),
    # Lewis et al. 2019
    "bart-base": _BART | _sizes(6, 768, 12, 3072),
    "bart-large": _BART | _sizes(12, 1024, 16, 4096),
    # Vaswani et al. 2017, table 3
    "transformer-base": _VANILLA | _sizes(6, 512, 8, 2048),
    "transformer-big": _VANILLA | _sizes(6, 1024, 16, 4096) | {"dropout": 0.3},
    # Tiedemann and Thottingal 2020: opus-mt-en-de
    "marian-base": _MARIAN | _sizes(6, 512, 8, 2048),
}
# Names of before there were more than one of a size.
PRESETS |= {"llama-1b": PRESETS["llama-3.2-1b"], "llama-8b": PRESETS["llama-3-8b"]}
PRESETS |= {"llama-70b": PRESETS["llama-3-70b"]}


@arguments.checked
def preset(name: str, **changes: Any) -> ModelConfig:
    """Return a named architecture with fields changed.

    Args:
        name: as "gpt2-124m" or "llama-3.1-8b"; an unknown one is answered with the list.
        changes: fields of ModelConfig.

    Returns:
        The ModelConfig. Raises ConfigError for an unknown name or field.

    >>> jaxgen.preset("gpt2-124m", context=256).layers
    12
    """
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    for field in changes:
        if field not in (*names, *RENAMED):
            raise ConfigError(f"{field}= is no field of ModelConfig{nearest(field, names)}")
    return ModelConfig(**fields(name)).replace(**changes)


def fields(name: str) -> dict[str, Any]:
    """Return the fields in which a named architecture differs from the defaults."""
    if name not in PRESETS:
        names = ", ".join(PRESETS)
        near = nearest(name, PRESETS)
        raise ConfigError(f"preset {name!r} is unknown{near}; there are {names}")
    return PRESETS[name]

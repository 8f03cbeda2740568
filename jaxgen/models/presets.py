"""Named architectures; sizes as published."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError, nearest

_GPT2: dict[str, Any] = {"vocab_size": 50257, "dropout": 0.1}
_LLAMA: dict[str, Any] = {
    "norm": "rms",
    "positions": "rope",
    "feed": "swiglu",
    "biases": "none",
}

PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019
    "gpt2-124m": _GPT2,
    "gpt2-355m": _GPT2 | {"layers": 24, "d_model": 1024, "heads": 16},
    "gpt2-774m": _GPT2 | {"layers": 36, "d_model": 1280, "heads": 20},
    "gpt2-1.5b": _GPT2 | {"layers": 48, "d_model": 1600, "heads": 25},
    # Llama 3.2 1B (Meta 2024), without the scaling of its rotary frequencies beyond 8192 tokens
    "llama-1b": _LLAMA
    | {
        "vocab_size": 128256,
        "context": 8192,
        "layers": 16,
        "d_model": 2048,
        "heads": 32,
        "kv_heads": 8,
        "d_ff": 8192,
        "rope_theta": 500000.0,
        "compute_dtype": "bfloat16",
    },
    # Llama 3 8B (Meta 2024)
    "llama-8b": _LLAMA
    | {
        "vocab_size": 128256,
        "context": 8192,
        "layers": 32,
        "d_model": 4096,
        "heads": 32,
        "kv_heads": 8,
        "d_ff": 14336,
        "rope_theta": 500000.0,
        "output": "untied",
        "compute_dtype": "bfloat16",
    },
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """Return a named architecture with fields changed; ConfigError if the name is unknown."""
    return ModelConfig(**(fields(name) | changes))


def fields(name: str) -> dict[str, Any]:
    """Return the fields in which a named architecture differs from the defaults."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError(f"preset {name!r} is unknown{nearest(name, PRESETS)}; there are {known}")
    return PRESETS[name]

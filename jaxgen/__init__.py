"""jaxgen: text generation in JAX, from raw text to a served model.

Every public name is a pure function or frozen data, loaded on first use: importing the package
touches no device and does not import JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxgen.config import ModelConfig
    from jaxgen.decoding.chain import chain, temperature, top_k, top_p
    from jaxgen.decoding.loop import decode
    from jaxgen.models.api import abstract, apply, axes, init
    from jaxgen.models.presets import preset
    from jaxgen.text.generate import generate
    from jaxgen.text.model import load, save
    from jaxgen.train.losses import causal_loss
    from jaxgen.train.step import train_step

_HOME = {
    "ModelConfig": "config",
    "abstract": "models.api",
    "apply": "models.api",
    "axes": "models.api",
    "causal_loss": "train.losses",
    "chain": "decoding.chain",
    "decode": "decoding.loop",
    "generate": "text.generate",
    "init": "models.api",
    "load": "text.model",
    "preset": "models.presets",
    "save": "text.model",
    "temperature": "decoding.chain",
    "top_k": "decoding.chain",
    "top_p": "decoding.chain",
    "train_step": "train.step",
}

__all__ = [
    "ModelConfig",
    "abstract",
    "apply",
    "axes",
    "causal_loss",
    "chain",
    "decode",
    "generate",
    "init",
    "load",
    "preset",
    "save",
    "temperature",
    "top_k",
    "top_p",
    "train_step",
]

__getattr__, __dir__ = lazy.names(__name__, _HOME)

"""The gate after an import or export: transformers and we compute the same logits."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models import api

ROWS, LENGTH = 2, 32
# float32: largest difference, relative to the largest logit. Below it: nats of KL per token.
LARGEST, DIVERGENCE = 1e-4, 1e-2


def can_compare() -> bool:
    """Return whether torch and transformers are installed."""
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def compare(hub: Path, config: ModelConfig, params: api.Params) -> str:
    """Return one line with the largest difference between transformers on `hub` and our model.

    Both read the same tokens. Raises CheckpointError if they differ by more than rounding does.
    """
    length = min(LENGTH, config.context)
    tokens = np.random.default_rng(0).integers(0, config.V, (ROWS, length))
    theirs = _theirs(hub, tokens, config.param_dtype)
    memory = None
    if config.topology == "encoder_decoder":
        memory = api.encode(params, config, tokens)
    ours = np.asarray(api.apply(params, config, tokens, memory=memory).logits, np.float64)
    if ours.shape != theirs.shape:
        raise CheckpointError(f"{hub}: transformers has logits {theirs.shape}, we {ours.shape}")
    worst, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
    nats = float(_divergence(theirs, ours).mean())
    told = (
        f"largest difference {worst:.2g} of logits up to {scale:.3g}, "
        f"KL {nats:.2g} nats a token, {tokens.size} tokens"
    )
    exact = config.param_dtype == "float32"
    if not (worst <= LARGEST * max(1.0, scale) if exact else nats <= DIVERGENCE):
        raise CheckpointError(f"{hub}: transformers computes other logits: {told}")
    return told


def _theirs(hub: Path, tokens: np.ndarray, dtype: str) -> np.ndarray:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.disable_progress_bar()
    settings = transformers.AutoConfig.from_pretrained(hub, trust_remote_code=False)
    kind: Any = getattr(transformers, (settings.architectures or [""])[0])
    model = kind.from_pretrained(hub, dtype=getattr(torch, dtype)).eval()
    ids = torch.from_numpy(tokens)
    more = {"decoder_input_ids": ids} if settings.is_encoder_decoder else {}
    with torch.no_grad():
        return model(ids, **more).logits.double().numpy()


def _divergence(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(one), log_softmax(other)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)

"""Plain PyTorch models with our weights, written as a PyTorch user would write them.

One projection for queries, keys and values, `scaled_dot_product_attention`, and nothing that hides
what it does. They cover what the benchmarks compare: GPT-2, Llama and an encoder-decoder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxgen import tree
from jaxgen.config import ModelConfig


class Attention(nn.Module):
    """Self-attention with one product for queries, keys and values; or cross-attention."""

    def __init__(self, config: ModelConfig, *, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.config, self.causal, self.cross = config, causal, cross
        bias = config.biases == "all"
        queries, keys = config.heads * config.H, 2 * config.K * config.H
        if cross:
            self.q = nn.Linear(config.d_model, queries, bias=bias)
            self.kv = nn.Linear(config.d_model, keys, bias=bias)
        else:
            self.qkv = nn.Linear(config.d_model, queries + keys, bias=bias)
        self.o = nn.Linear(queries, config.d_model, bias=bias)

    def forward(self, x: torch.Tensor, turns: Any, memory: torch.Tensor | None) -> torch.Tensor:
        config = self.config
        widths = (config.heads * config.H, config.K * config.H, config.K * config.H)
        if self.cross:
            q, (k, v) = self.q(x), self.kv(memory).split(widths[1:], dim=-1)
        else:
            q, k, v = self.qkv(x).split(widths, dim=-1)
        q, k, v = (y.unflatten(-1, (-1, config.H)).transpose(1, 2) for y in (q, k, v))
        if turns is not None:
            q, k = turn(q, *turns), turn(k, *turns)
        grouped = config.heads != config.K
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=grouped)
        return self.o(y.transpose(1, 2).flatten(2))


class Feed(nn.Module):
    """GELU, or SwiGLU with its two input projections in one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.biases == "all"
        self.gated = config.feed == "swiglu"
        self.up = nn.Linear(config.d_model, config.F * (1 + self.gated), bias=bias)
        self.down = nn.Linear(config.F, config.d_model, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        if self.gated:
            gate, y = y.chunk(2, dim=-1)
            return self.down(F.silu(gate) * y)
        return self.down(F.gelu(y, approximate="tanh"))


class Block(nn.Module):
    """Attention, to a memory if there is one, and feed-forward, each after a norm."""

    def __init__(self, config: ModelConfig, *, causal: bool, cross: bool) -> None:
        super().__init__()
        self.attn_norm, self.attn = norm(config), Attention(config, causal=causal)
        if cross:
            self.cross_norm = norm(config)
            self.cross = Attention(config, causal=False, cross=True)
        self.feed_norm, self.feed = norm(config), Feed(config)

    def forward(self, x: torch.Tensor, turns: Any, memory: torch.Tensor | None) -> torch.Tensor:
        x = x + self.attn(self.attn_norm(x), turns, None)
        if memory is not None:
            x = x + self.cross(self.cross_norm(x), None, memory)
        return x + self.feed(self.feed_norm(x))


class Tower(nn.Module):
    """Embeddings, layers and the last norm; a decoder is causal."""

    def __init__(self, config: ModelConfig, layers: int, *, causal: bool, cross: bool) -> None:
        super().__init__()
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context, config.d_model)
        blocks = [Block(config, causal=causal, cross=cross) for _ in range(layers)]
        self.layers, self.final_norm = nn.ModuleList(blocks), norm(config)
        self.config = config

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        length, turns = x.shape[1], None
        if self.config.positions == "learned":
            x = x + self.positions.weight[:length]
        else:
            turns = angles(self.config, length, x.device)
        for layer in self.layers:
            x = layer(x, turns, memory)
        return self.final_norm(x)


class Model(nn.Module):
    """A decoder, or an encoder and its decoder, whose output table is the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check(config)
        two = config.topology == "encoder_decoder"
        self.tokens = nn.Embedding(config.V, config.d_model)
        if two:
            depth = config.encoder_layers or config.layers
            self.encoder = Tower(config, depth, causal=False, cross=False)
        self.decoder = Tower(config, config.layers, causal=True, cross=two)

    def forward(self, tokens: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        memory = None if source is None else self.encoder(self.tokens(source))
        return F.linear(self.decoder(self.tokens(tokens), memory), self.tokens.weight)


def device() -> str:
    """Return where torch is to run: on an NVIDIA GPU if it sees one, unless JAX is told not to."""
    hidden = os.environ.get("JAX_PLATFORMS") == "cpu"
    return "cuda" if torch.cuda.is_available() and not hidden else "cpu"


def wait() -> None:
    """Return once a GPU has done what it was given."""
    if device() == "cuda":
        torch.cuda.synchronize()


def check(config: ModelConfig) -> None:
    """Raise ValueError for a config that these models are not."""
    wanted = {
        "topology": ("decoder", "encoder_decoder"),
        "positions": ("learned", "rope"),
        "feed": ("gelu_tanh", "swiglu"),
        "norm": ("layer", "rms"),
        "biases": ("all", "none"),
        "output": ("tied",),
        "norm_at": ("pre",),
        "dropout": (0.0,),
    }
    for name, values in wanted.items():
        if getattr(config, name) not in values:
            raise ValueError(f"no peer for {name}={getattr(config, name)}; one of {values}")


def norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
    return nn.LayerNorm(config.d_model, eps=config.norm_epsilon)


def angles(
    config: ModelConfig, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    waves = config.rope.theta ** (-torch.arange(0, config.H, 2, device=device) / config.H)
    angle = torch.outer(torch.arange(length, device=device), waves)
    return angle.cos(), angle.sin()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def load(config: ModelConfig, params: Any) -> Model:
    """Return the torch model that holds copies of our parameters."""
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in tree.flatten(params).items()}
    state = {"tokens.weight": flat["embed/tokens"]}
    state |= _tower(flat, "", "decoder")
    if config.topology == "encoder_decoder":
        state |= _tower(flat, "encoder/", "encoder")
    model = Model(config)
    copies = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
    model.load_state_dict(copies)
    return model


class Hub(nn.Module):
    """A model of transformers that takes tokens, and a source, and gives logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        if source is None:
            return self.model(input_ids=tokens, use_cache=False).logits
        return self.model(input_ids=source, decoder_input_ids=tokens, use_cache=False).logits


def from_hub(folder: Path) -> Hub:
    """Return what transformers makes of a folder, as its users train it: with torch's attention."""
    import transformers

    kind = transformers.AutoConfig.from_pretrained(folder)
    one, two = transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM
    maker = two if kind.is_encoder_decoder else one
    model = maker.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    return Hub(model.train())


# For each linear layer of the peer, the weights of ours that lie side by side in it.
_JOINED = {
    "attn.qkv": ("attn/q", "attn/k", "attn/v"),
    "attn.o": ("attn/o",),
    "cross.q": ("cross/q",),
    "cross.kv": ("cross/k", "cross/v"),
    "cross.o": ("cross/o",),
    "feed.up": ("feed/gate", "feed/up"),
    "feed.down": ("feed/down",),
}


def _tower(flat: dict[str, np.ndarray], path: str, name: str) -> dict[str, np.ndarray]:
    found = {}
    if f"{path}embed/positions" in flat:
        found[f"{name}.positions.weight"] = flat[f"{path}embed/positions"]
    for part in ("scale", "bias"):
        if f"{path}final_norm/{part}" in flat:
            torch_part = {"scale": "weight", "bias": "bias"}[part]
            found[f"{name}.final_norm.{torch_part}"] = flat[f"{path}final_norm/{part}"]
            for place in ("attn_norm", "cross_norm", "feed_norm"):
                for layer, row in enumerate(flat.get(f"{path}layers/{place}/{part}", ())):
                    found[f"{name}.layers.{layer}.{place}.{torch_part}"] = row
    for linear, ours in _JOINED.items():
        stacks = [flat[f"{path}layers/{p}"] for p in ours if f"{path}layers/{p}" in flat]
        biases = [flat.get(f"{path}layers/{p}_bias") for p in ours if f"{path}layers/{p}" in flat]
        for layer in range(len(stacks[0]) if stacks else 0):
            # [in..., out...] -> [out, in]: heads are flattened on whichever side they are.
            into = stacks[0].shape[1:-1] if linear.endswith(".o") else stacks[0].shape[1:2]
            rows = [stack[layer].reshape(int(np.prod(into)), -1).T for stack in stacks]
            found[f"{name}.layers.{layer}.{linear}.weight"] = np.concatenate(rows)
            if biases[0] is not None:
                row = np.concatenate([bias[layer].reshape(-1) for bias in biases])
                found[f"{name}.layers.{layer}.{linear}.bias"] = row
    return found

"""One layer at a time: its weights, what it makes of the stream, statistics of its inputs.

The statistics come out of a backward pass: a weight that is `Recorded` computes what it always
does, and the gradient of its probe is X^T X of its inputs, whatever the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen import tree
from jaxgen.adapters.sites import Site, sites
from jaxgen.config import ModelConfig
from jaxgen.derivatives import custom_vjp
from jaxgen.errors import ConfigError
from jaxgen.models import api, serving
from jaxgen.nn.stack import layer_path
from jaxgen.nn.transformer import Inputs, OneLayer
from jaxgen.ops.contract import contract
from jaxgen.pytree import register_dataclass

BATCH = 8  # rows of text at once
SHARED = ("relative",)  # parameters outside of layers that these read


@register_dataclass
@dataclass(frozen=True)
class Statistics:
    """Of a weight's inputs x [rows, I]: x^T x, the sum of |x|, and the largest |x|."""

    gram: Any  # [I, I] float32
    total: Any  # [I] float32
    most: Any  # [I] float32

    @classmethod
    def none(cls, width: int) -> Statistics:
        """Return the statistics of no rows."""
        vector = jnp.zeros(width, jnp.float32)
        return cls(jnp.zeros((width, width), jnp.float32), vector, vector)

    def plus(self, other: Statistics) -> Statistics:
        """Return those of both sets of rows."""
        most = jnp.maximum(self.most, other.most)
        return Statistics(self.gram + other.gram, self.total + other.total, most)


@partial(custom_vjp, nondiff_argnums=())
def _record(x: Array, probe: Statistics) -> Array:
    return x


def _record_forward(x: Array, probe: Statistics) -> tuple[Array, tuple[()]]:
    return x, ()


def _record_backward(
    args: tuple[Array, Statistics], _: tuple[()], grad: Array
) -> tuple[Array, Statistics]:
    rows = args[0].reshape(-1, args[0].shape[-1]).astype(jnp.float32)
    size = jnp.abs(rows)
    with jax.default_matmul_precision("highest"):
        gram = rows.T @ rows
    return jnp.zeros_like(grad), Statistics(gram, size.sum(0), size.max(0))


_record.defvjp(_record_forward, _record_backward)


@register_dataclass
@dataclass(frozen=True)
class Recorded:
    """A weight beside a probe, whose gradient is the `Statistics` of the weight's inputs."""

    weight: Any
    probe: Statistics
    num_contracted: int = field(metadata={"static": True})

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight)."""
        rows = x.reshape(*x.shape[: x.ndim - self.num_contracted], -1)
        return contract(
            equation, _record(rows, self.probe).reshape(x.shape), self.weight, dtype=dtype
        )


def check_model(config: ModelConfig, params: api.Params) -> None:
    """Raise ConfigError for a model that can't be taken layer by layer, or is quantised already."""
    lacking = {
        "topology": config.topology != "decoder" and config.topology,
        "head": config.head != "lm" and config.head,
        "experts.number": config.experts.number,
        "layer_weights": config.weight_sets and config.layer_weights,
        "per_layer": config.per_layer is not None and "learned",
        "residual.streams": config.residual.streams > 1 and config.residual.streams,
        "positions": config.positions == "disentangled" and config.positions,
        "keys_of": next((k.keys_of for k in config.kinds.values() if k.keys_of is not None), None),
    }
    for name, value in lacking.items():
        if value:
            raise ConfigError(
                f"{name}={value}: compress takes decoders with head=lm whose layers stand by "
                f"themselves; `jaxgen convert --to gguf --dtype q8_0` quantises others"
            )
    for path, leaf in tree.flatten(params).items():
        if hasattr(leaf, "contract"):
            raise ConfigError(
                f"the model is quantised or adapted already ({path} is {type(leaf).__name__}); "
                f"give the model it was made of, or `jaxgen convert` or `merge` it first"
            )


def layer_sites(config: ModelConfig, layer: int) -> dict[str, Site]:
    """Return the matrices of a layer, by their path inside of it."""
    home = f"{layer_path(config, layer)[0]}/"
    return {
        path.removeprefix(home): site
        for path, site in sites(config).items()
        if path.startswith(home) and layer in site.layers
    }


def embed(params: api.Params, config: ModelConfig, rows: np.ndarray | None) -> list[jax.Array]:
    """Return the stream [B, T, D] before the first layer, in parts of rows [N, T]; none of None."""
    parts = [] if rows is None else batches(rows)
    return [_embed(params, config, jnp.asarray(part)) for part in parts]


@partial(jax.jit, static_argnames="config")
def _embed(params: api.Params, config: ModelConfig, tokens: Array) -> Float[Array, "B T D"]:
    return api.apply(params, config, tokens, taps=("embedded",)).taps["embedded"]


def _run(own: Any, shared: Any, config: ModelConfig, layer: int, x: Array) -> Array:
    rows, length = x.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    inputs = Inputs(jnp.zeros((rows, length), jnp.int32), positions, order="running")
    variables = {"params": {"layer": own, **shared}}
    out: Any = OneLayer(config, layer).apply(variables, x, inputs)
    return out


def shared_params(params: api.Params) -> Any:
    """Return what layers read outside of their own parameters."""
    return {name: params[name] for name in SHARED if name in params}


def _like(config: ModelConfig, layer: int) -> int:
    """Return the first layer that computes as this one does, so that programs are compiled once."""
    if layer < config.leading or config.scores.by_layer == "inverse":
        return layer
    return config.leading + (layer - config.leading) % len(config.pattern)


def run_layer(
    own: Any, shared: Any, config: ModelConfig, layer: int, x: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """Return the stream after a layer with these parameters, which may be quantised."""
    return _run_jit(own, shared, config, _like(config, layer), x)


_run_jit = jax.jit(_run, static_argnames=("config", "layer"))


def record_layer(
    own: Any, shared: Any, config: ModelConfig, layer: int, x: Float[Array, "B T D"]
) -> dict[str, Statistics]:
    """Return the statistics of the inputs of a layer's matrices, by path; see `input_of`."""
    return _record_jit(own, shared, config, _like(config, layer), x)


@partial(jax.jit, static_argnames=("config", "layer"))
def _record_jit(
    own: Any, shared: Any, config: ModelConfig, layer: int, x: Array
) -> dict[str, Statistics]:
    flat, by_path = tree.flatten(own), layer_sites(config, layer)
    widths = {input_of(path, by_path): site.num_inputs for path, site in by_path.items()}

    def loss(probes: dict[str, Statistics]) -> Array:
        recorded = {
            path: Recorded(flat[path], probe, len(by_path[path].inner))
            for path, probe in probes.items()
        }
        return jnp.sum(_run(tree.unflatten(flat | recorded), shared, config, layer, x))

    return jax.grad(loss)({path: Statistics.none(width) for path, width in widths.items()})


def statistics(
    own: Any, shared: Any, config: ModelConfig, layer: int, stream: list[jax.Array]
) -> dict[str, Statistics]:
    """Return the sum of `record_layer` over parts of a stream."""
    totals: dict[str, Statistics] = {}
    for x in stream:
        part = record_layer(own, shared, config, layer, x)
        totals = {path: totals[path].plus(s) if totals else s for path, s in part.items()}
    return totals


def batches(rows: np.ndarray) -> list[np.ndarray]:
    """Return rows [N, length] in the parts that are run at once."""
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def input_of(path: str, by_path: dict[str, Site]) -> str:
    """Return the path of the first matrix that has the same inputs, which are recorded once."""
    home, _, name = path.rpartition("/")
    for first, *rest in serving.FUSED.values():
        if name in rest and f"{home}/{first}" in by_path:
            return f"{home}/{first}"
    return path

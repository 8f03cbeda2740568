"""A mixture of experts in the place of the feed-forward sublayer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxgen.config import ModelConfig
from jaxgen.mesh import constrain, gather, place
from jaxgen.nn.feed import Feed, activate, is_gated
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import Init, weight
from jaxgen.ops import expert_exchange
from jaxgen.ops import experts as ops
from jaxgen.ops.contract import contract
from jaxgen.ops.grouped_matmul import grouped_matmul


class Experts(nn.Module):
    """The weighted sum of what the chosen experts of each token make of it, and a shared one."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, stream: jax.Array, segments: jax.Array | None) -> jax.Array:
        """Return x [B, T, D] transformed position by position.

        stream: x before its norm; segments: 0 for padding.
        """
        config, own = self.config, self.config.experts
        routed = rows = x
        if own.norms == "own":
            routed = Norm(config, name="router_norm")(stream) * config.d_model**-0.5
            rows = Norm(config, name="in_norm")(stream)
        logits = self._logits(routed)
        routing = self._route(logits, segments)
        leaves = self._leaves()
        run = partial(_mixture, config.feed, config.compute_dtype, own.weigh)
        y = _by_device(run, own.number, rows, routing, leaves)
        if own.norms == "own":
            y = Norm(config, name="out_norm")(y)
        if own.shared:
            y = y + self._shared(x)
        return constrain(y, "BTD")

    def _shared(self, x: jax.Array) -> jax.Array:
        """Return what the expert of all tokens makes of x [B, T, D]."""
        config = self.config
        y = Feed(config, config.experts.shared, name="shared")(x)
        if config.experts.norms == "own":
            y = Norm(config, name="shared_norm")(y)
        if config.experts.shared_gate == "none":
            return y
        shape, normal = (config.d_model, 1), nn.initializers.normal(config.init_std)
        gate_DE = weight(self, "shared_gate", shape, "DE", normal, config.param_dtype)
        gate = contract("BTD,DE->BTE", x.astype("float32"), gate_DE, dtype="float32")
        return y * jax.nn.sigmoid(gate).astype(y.dtype)

    def _logits(self, x: jax.Array) -> jax.Array:
        """Return the router's logits [B, T, E], in float32 whatever the rest is computed in."""
        router_DE = self._weight("router", "DE", nn.initializers.normal(self.config.init_std))
        logits = contract("BTD,DE->BTE", x.astype("float32"), router_DE, dtype="float32")
        if self.config.experts.router_bias == "bias":
            bias = self._weight("router_bias", "E", nn.initializers.zeros)
            logits = logits + bias.astype("float32")
        return logits

    def _route(self, logits: jax.Array, segments: jax.Array | None) -> ops.Routing:
        """Return the routing [B, T, A]; in training, what the losses need is left behind."""
        own = self.config.experts
        flat = logits.reshape(-1, own.number)
        bias = None
        if own.choice_bias == "bias":  # float32: a step moves it by less than bfloat16 tells apart
            bias = self._weight("choice_bias", "E", nn.initializers.zeros, "float32")
        routing = ops.route(
            flat,
            bias,
            router=own.router,
            active=own.active,
            normalise=own.normalise,
            groups=own.groups,
            active_groups=own.active_groups,
            scale=own.scale,
        )
        if self.is_mutable_collection("router"):
            real = None if segments is None else segments.reshape(-1) > 0
            stats = ops.router_stats(flat, routing.experts, real)
            self.sow("router", "stats", stats)
            if bias is not None:
                weights = ops.with_load_gradient(routing.weights, bias, stats)
                routing = routing._replace(weights=weights)
        if own.norms == "own":
            gain = self._weight("router_gain", "E", nn.initializers.ones)
            gained = routing.weights * gain.astype("float32")[routing.experts]
            routing = routing._replace(weights=gained)
        return jax.tree.map(lambda a: a.reshape(*logits.shape[:2], -1), routing)

    def _leaves(self) -> dict[str, Any]:
        """Return the weights of all experts by name, and their biases."""
        config = self.config
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
        names = ("up", "down", "gate") if is_gated(config.feed) else ("up", "down")
        inits = dict.fromkeys(names, normal)
        inits["down"] = nn.initializers.normal(config.init_std / (2 * config.layers) ** 0.5)
        if config.has_bias("feed"):
            inits |= {f"{name}_bias": zeros for name in names}
        return {name: self._weight(name, LETTERS[name], init) for name, init in inits.items()}

    def _weight(self, name: str, letters: str, init: Init, dtype: str | None = None) -> Any:
        config = self.config
        size = {"D": config.d_model, "E": config.experts.number}
        size["F"] = config.experts.width(config.F)
        shape = tuple(size[letter] for letter in letters)
        return weight(self, name, shape, letters, init, dtype or config.param_dtype)


RAGGED = ("tpu", "gpu")  # platforms with a ragged all-to-all (XLA of jaxlib 0.10 and 0.12)
LETTERS = {"up": "EDF", "gate": "EDF", "down": "EFD"}
LETTERS |= {"up_bias": "EF", "gate_bias": "EF", "down_bias": "ED"}


def _mixture(
    feed: str,
    dtype: str,
    weigh: str,
    x: Array,
    routing: ops.Routing,
    leaves: dict[str, Any],
    last: Callable[[Array], Array] = lambda bias: bias,
    among: tuple[str, ...] = (),
) -> Array:
    """Return the sum [B, T, D] over those experts of each token whose leaves are here.

    last: of the bias of `down`, which devices that share F must not add twice. among: mesh axes
    whose devices have the other experts, and get rows for them.
    """
    number = jax.tree.leaves(leaves["up"])[0].shape[0]
    active, devices = routing.experts.shape[-1], lax.axis_size(among) if among else 1
    to = ops.sort(routing.experts.reshape(-1, active), number * devices)
    rows = ops.spread(x.reshape(-1, x.shape[-1]).astype(dtype), to)
    weights, sizes = routing.weights.reshape(to.rows.shape), to.sizes
    if weigh == "input":
        rows = rows * weights.reshape(-1)[to.pairs][:, None].astype(dtype)
        weights = jnp.ones_like(weights)
    exchange = expert_exchange.plan(to.sizes, among) if among else None
    if exchange is not None:
        most = devices * weights.shape[0] * min(active, number)
        rows = expert_exchange.send(rows, exchange, most, among)
        sizes = exchange.groups(devices)

    def project(name: str, rows: Array) -> Array:
        y = grouped_matmul(rows, leaves[name], sizes, dtype=dtype)
        if (bias := leaves.get(f"{name}_bias")) is None:
            return y
        bias = last(bias) if name == "down" else bias
        return ops.add_biases(y, bias, sizes)

    gate = project("gate", rows) if "gate" in leaves else None
    y = project("down", activate(feed, project("up", rows), gate))
    if exchange is not None:
        y = expert_exchange.bring_back(y, exchange, to.pairs.shape[0], among)
    return ops.collect(y, weights, to).reshape(x.shape)


def _by_device(
    run: Callable[..., Array], number: int, x: Array, routing: ops.Routing, leaves: dict[str, Any]
) -> Array:
    """Return run(x, routing, leaves) where each device has a part of the tokens and experts.

    Devices along the axis `expert` hold rows of their own. Rows go to the devices of their experts
    and come back, each once for each expert of it: a ragged all-to-all. Where XLA has none, or a
    token has as many experts as there are devices, less is moved if each device sees all rows of
    all, and gets the sums for its own back: an all-gather and a reduce-scatter.
    """
    plain = all(hasattr(leaf, "ndim") for leaf in leaves.values())
    if not plain or not place.is_spread():
        return run(x, routing, leaves)
    names = list(leaves)
    gathered = [gather(leaves[name], LETTERS[name], x.shape[-1]) for name in names]
    by_expert = place.axes_of("E", number)
    by_width = place.axes_of("F", leaves["up"].shape[-1])
    shared_rows = bool(by_expert) and set(by_expert) <= set(place.axes_of("B", x.shape[0]))
    is_ragged = shared_rows and place.platform() in RAGGED

    def local(x: Array, experts: Array, weights: Array, *own: Array) -> Array:
        exchanges = is_ragged and experts.shape[-1] < lax.axis_size(by_expert)
        if shared_rows and not exchanges:
            gather_rows = partial(lax.all_gather, axis_name=by_expert, axis=0, tiled=True)
            x, experts, weights = map(gather_rows, (x, experts, weights))
        if by_expert and not exchanges:
            experts = experts - lax.axis_index(by_expert) * own[0].shape[0]
        once = lambda bias: bias  # noqa: E731
        if by_width:
            once = lambda bias: jnp.where(lax.axis_index(by_width) == 0, bias, 0)  # noqa: E731
        among = by_expert if exchanges else ()
        y = run(x, ops.Routing(experts, weights), dict(zip(names, own, strict=True)), once, among)
        y = lax.psum(y, by_width) if by_width else y
        if not by_expert or exchanges:
            return y
        if shared_rows:
            return lax.psum_scatter(y, by_expert, scatter_dimension=0, tiled=True)
        return lax.psum(y, by_expert)

    arrays = [x, routing.experts, routing.weights, *gathered]
    letters = ["BTD", "BT.", "BT.", *(LETTERS[name] for name in names)]
    return place.alone(local, arrays, letters, "BTD")

"""Rounds of federated training as steps: clients train on text of their own, and parts are summed.

What a round's clients have moved on average is, with its sign turned, the gradient of a step:
with train.optimizer=sgd that is FedAvg (McMahan et al. 2017), with adamw FedAdam (Reddi et al.
2021). Clipped by client, with noise, it is DP-FedAvg (McMahan et al. 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.data.rounds import LOST
from jaxgen.mesh.place import is_spread
from jaxgen.privacy import clip as clips
from jaxgen.privacy.secure import secure_total
from jaxgen.privacy.settings import FederatedSettings
from jaxgen.train import accumulate as accumulation
from jaxgen.train import private as privacy
from jaxgen.train.accumulate import LossFunction, divisor, over_microbatches
from jaxgen.train.losses import Batch, Loss, rows_of
from jaxgen.train.master import wide
from jaxgen.train.private import Private

SECRETS = 0x5EC  # folded into a step's key for the secrets of secure sums


@dataclass(frozen=True)
class Federated:
    """How a run's rounds are made; frozen: globs of paths that aren't trained."""

    settings: FederatedSettings
    frozen: tuple[str, ...] = ()

    def split(self, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (what is trained, what is not), by path."""
        flat = tree.flatten(params)
        fixed = {path: x for path, x in flat.items() if tree.match(path, self.frozen)}
        return {path: x for path, x in flat.items() if path not in fixed}, fixed


def gradients(
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    accumulate: int,
    federated: Federated,
    private: Private | None = None,
    clip: Any = None,
) -> tuple[Loss, Any]:
    """Return (loss sums, minus the mean way of the clients that arrive), as `accumulate.gradients`.

    Args:
        batch: its rows are those of each client in turn, client by client, with `lost` beside them.
        accumulate: groups of clients that train one after the other; those of a group at once.
        private: how parts are clipped and noise is added; None: each client counts by its tokens.
        clip: of this step, where it adapts.
    """
    clients = by_client(batch, federated.settings)
    if private is not None:
        rows = partial(_clipped_rows, federated)
        result, grads = privacy.gradients(
            *(loss, params, config, clients, key),
            accumulate=accumulate,
            private=private,
            clip=clip,
            rows=rows,
        )
        return result._replace(nll=result.nll.reshape(-1)), grads
    tokens = jnp.sum(jnp.abs(clients["weights"]), axis=(1, 2, 3))
    clients["share"] = tokens / divisor(jnp.sum(tokens))
    one = partial(_group, federated, loss, params, config)
    result, grads = over_microbatches(one, params, clients, key, accumulate)
    arrived = divisor(jnp.sum(clients["share"] * (1 - clients[LOST])))
    metrics = {"arrived": jnp.sum((tokens > 0) * (1 - clients[LOST]))}
    grads = jax.tree.map(lambda g: g / arrived, grads)
    return result._replace(nll=result.nll.reshape(-1), metrics=metrics), grads


def by_client(batch: Batch, settings: FederatedSettings) -> dict[str, Array]:
    """Return the arrays of a batch as [clients, local steps, rows, ...], `lost` as [clients]."""
    lead = (settings.clients, settings.local_steps, -1)
    arrays = {name: jnp.asarray(x) for name, x in batch.items() if name != "index"}
    arrays = {name: x.reshape(*lead, *x.shape[1:]) for name, x in arrays.items()}
    lost = arrays.pop(LOST, None)
    if "weights" not in arrays:
        arrays["weights"] = jnp.ones_like(arrays["targets"], jnp.float32)
    none = jnp.zeros(settings.clients, jnp.float32)
    return arrays | {LOST: none if lost is None else lost[:, 0, 0]}


def train_clients(
    federated: Federated,
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    clients: Mapping[str, Array],
    key: PRNGKeyArray,
) -> tuple[Loss, dict[str, Array]]:
    """Return (loss sums of each client, how far each has come: a tree [C, ...] by path).

    A client makes steps of SGD from the same parameters. What is moved is summed on its own, so
    that it isn't rounded to the parameters it is added to.
    """
    settings = federated.settings
    moving, fixed = federated.split(params)

    def of_parts(moving: Any, config: ModelConfig, rows: Batch, key: PRNGKeyArray) -> Any:
        return loss(tree.unflatten({**moving, **fixed}), config, rows, key)

    def local_step(way: Any, xs: tuple[Any, PRNGKeyArray]) -> tuple[Any, Loss]:
        rows, own = xs
        here = jax.tree.map(lambda p, d: (p.astype(d.dtype) + d).astype(p.dtype), moving, way)
        result, grads = accumulation.gradients(of_parts, here, config, rows, own, accumulate=1)
        if settings.proximal:
            grads = jax.tree.map(lambda g, d: g + settings.proximal * d, grads, way)
        way = jax.tree.map(lambda d, g: d - settings.learning_rate * g, way, grads)
        return way, result._replace(metrics={})

    def one(rows: Any, number: Array) -> tuple[Loss, Any]:
        none = jax.tree.map(lambda p: jnp.zeros(p.shape, wide(p.dtype)), moving)
        keys = jax.random.split(jax.random.fold_in(key, number), settings.local_steps)
        way, each = jax.lax.scan(local_step, none, (rows, keys))
        return Loss(each.total.sum(), each.weight.sum(), each.nll.reshape(-1), {}), way

    rows = {name: x for name, x in clients.items() if x.ndim > 1}
    train = jax.vmap(one)
    if is_spread():  # the compiler lays what is within a client, as the client axis is laid
        empty = jax.sharding.AbstractMesh((), ())
        with jax.sharding.use_abstract_mesh(empty):
            return train(rows, jnp.arange(rows_of(rows)))
    return train(rows, jnp.arange(rows_of(rows)))


def _group(
    federated: Federated,
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    clients: dict[str, Array],
    key: PRNGKeyArray,
) -> tuple[Loss, Any]:
    """Return the sums over a group's clients that arrive, each by its share of the tokens."""
    each, ways = train_clients(federated, loss, params, config, clients, key)
    parts = jax.tree.map(lambda d: clips.scaled(clients["share"], -d), ways)
    return _summed(each, clients), _with_frozen(params, _total(federated, parts, clients, key))


def _clipped_rows(
    federated: Federated,
    private: Private,
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    clients: dict[str, Array],
    key: PRNGKeyArray,
    clip: Any,
) -> tuple[Loss, Any, Float[Array, "C"]]:
    """Return what `private` takes of its rows, of clients: loss sums, clipped sum, norms."""
    each, ways = train_clients(federated, loss, params, config, clients, key)
    ways = jax.tree.map(lambda d: clips.scaled(1 - clients[LOST], -d), ways)
    parts, norms = clips.clipped(ways, clip, private.groups)
    total = _total(federated, parts, clients, key)
    return _summed(each, clients), _with_frozen(params, total), norms


def _summed(each: Loss, clients: Mapping[str, Array]) -> Loss:
    here = 1 - clients[LOST]
    return Loss(jnp.sum(each.total * here), jnp.sum(each.weight * here), each.nll * here[:, None])


def _total(federated: Federated, parts: Any, clients: Mapping[str, Array], key: Any) -> Any:
    """Return the sum of the parts that arrive, in the clear or beneath masks."""
    here = 1 - clients[LOST]
    if federated.settings.secure is None:
        return jax.tree.map(lambda x: jnp.sum(clips.scaled(here, x), axis=0), parts)
    secrets = jax.random.fold_in(key, SECRETS)
    return secure_total(parts, here > 0, secrets, federated.settings.secure)


def _with_frozen(params: Any, total: Mapping[str, Array]) -> Any:
    """Return the sum as a tree like that of the parameters, zero where they aren't trained."""
    flat = tree.flatten(params)
    return tree.unflatten(
        {p: total[p] if p in total else jnp.zeros(x.shape, wide(x.dtype)) for p, x in flat.items()}
    )

"""Mixtures, adapters and private steps on eight devices: prints what leaves one's course."""

import json
from dataclasses import replace
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxgen
from jaxgen import settings, tree
from jaxgen.adapters import adapter as adapters
from jaxgen.adapters.base import quantise
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.config_experts import Experts
from jaxgen.mesh import MeshSettings, device_mesh, place
from jaxgen.mesh.settings import parse
from jaxgen.models import api
from jaxgen.nn import experts
from jaxgen.privacy.settings import FederatedSettings, PrivacySettings
from jaxgen.train import federated, partitioner, private
from jaxgen.train.step import train_step

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=8, layers=2, d_model=16, heads=4, d_ff=16, norm="rms",
    positions="rope", feed="swiglu", biases="feed",
    experts=Experts(number=8, active=2, balance=0.01, z=1e-3, shared=8, choice_bias="bias",
                    router="sigmoid"),
)  # fmt: skip
# Biases of the choice follow the sign of their gradient, whose size is no mean over tokens.
RULE = optax.partition(
    {"choice_bias": optax.chain(optax.scale_by_sign(), optax.scale(-1e-3)), "rest": optax.sgd(0.3)},
    lambda params: tree.map_paths(
        lambda path, _: "choice_bias" if path.endswith("choice_bias") else "rest", params
    ),
)
DENSE = CONFIG.replace(experts=Experts(), biases="none")
ADAPTERS = [
    ({"kind": "dora", "rank": 2, "save": ["final_norm/scale"]}, "int4"),
    ({"kind": "prefix", "tokens": 3}, "int8"),
]
STEPS, ROWS = 20, 16
calls = []  # of the ragged all-to-all
# The mesh, its form, and whether rows go to their experts by `jax.lax.ragged_all_to_all`.
MESHES = [("fsdp:2,expert:2,tensor:2", "jit", False), ("data:2,expert:4", "shard_map", True)]


def ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """What `jax.lax.ragged_all_to_all` is documented to do, of arrays that all devices see."""
    calls.append(operand.shape)
    me, gather = lax.axis_index(axis_name), partial(lax.all_gather, axis_name=axis_name)
    each = input_offsets.shape[0] // lax.axis_size(axis_name)
    places = jnp.arange(output.shape[0])
    # The slices of device s that are for this one; the sizes must be those it expects.
    sent = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(gather(x), me * each, each, 1),
        (input_offsets, send_sizes, output_offsets),
    )
    agree = jnp.all(sent[1].reshape(-1) == recv_sizes)
    for sender, rows in enumerate(gather(operand)):
        for begin, size, landing in zip(*(x[sender] for x in sent), strict=True):
            here = (places >= landing) & (places < landing + size)
            from_there = rows[jnp.clip(begin + places - landing, 0, rows.shape[0] - 1)]
            output = jnp.where(here[:, None], from_there, output)
    return jnp.where(agree, output, jnp.nan)


def step(state, batch, **more):
    return train_step(
        state, batch, config=CONFIG, optimizer=RULE, loss=jaxgen.causal_loss, spike=None, **more
    )


def course(mesh, form):
    """Return the losses of some steps, and the parameters after them."""
    params = jaxgen.init(CONFIG, jax.random.key(0))
    # In the second layer all tokens choose two experts, which one device has.
    bias = params["layers"]["experts"]["choice_bias"]
    params["layers"]["experts"]["choice_bias"] = bias.at[1, 2:4].set(1.0)
    state = jaxgen.train_state(params, RULE, jax.random.key(1))
    shardings = None if mesh is None else place.state_shardings(mesh, state, api.axes(CONFIG))
    run = partitioner.make_step(form, step, mesh, shardings, ROWS)
    state = state if mesh is None else jax.device_put(state, shardings)
    losses, rng = [], np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = rng.integers(0, 32, (ROWS, 9)).astype(np.int32)
        state, metrics = run(state, {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        losses.append(float(metrics["objective"]))
    return losses, jax.device_get(state.params)


def adapter_course(mesh, asked, base):
    """Return the losses of some steps of an adapter, and its numbers after them."""
    adapter = adapters.plan(settings.build(AdapterSettings, asked), DENSE)
    where = mesh and place.state_shardings(mesh, api.abstract(DENSE), api.axes(DENSE))
    params = jaxgen.init(DENSE, jax.random.key(0))
    own = adapters.init(adapter, DENSE, params, jax.random.key(2))
    params = place.under(mesh, quantise)(jax.device_put(params, where), DENSE, base)
    rule = optax.sgd(0.3)
    state = jaxgen.train_state(own, rule, jax.random.key(1))
    shardings = mesh and place.state_shardings(mesh, state, adapters.axes(adapter, DENSE))

    def step(state, batch, base):
        def loss(own, config, batch, key=None):
            tuned = adapters.attach(base, replace(adapter, params=own), config)
            return jaxgen.causal_loss(tuned, config, batch, key)

        return train_step(state, batch, config=DENSE, optimizer=rule, loss=loss, spike=None)

    run = partitioner.make_step("jit", step, mesh, shardings, ROWS, params)
    state, losses = state if mesh is None else jax.device_put(state, shardings), []
    tokens = np.random.default_rng(0).integers(0, 32, (ROWS, 9)).astype(np.int32)
    for _ in range(3):
        state, metrics = run(state, {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        losses.append(float(metrics["objective"]))
    assert losses[-1] < losses[0], losses
    whole = [x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params)]
    assert all(whole) == (mesh is None)
    return losses, jax.device_get(state.params)


PRIVACY = PrivacySettings(noise_multiplier=0.5, delta=1e-6, clip=0.5, expected=6.0, seed=5)
WAYS = {"vmap": None, "ghost": private.CausalGhost(lambda params, key: params, 0.0, 0.0, None)}


CLIENTS = federated.Federated(FederatedSettings(clients=4, local_steps=2, secure=0.5))


def private_step(mesh, way):
    """Return the norm of the gradient of a private step, and the parameters after it."""
    config, rule = DENSE.replace(layers=1), optax.sgd(0.3)
    own = private.Private(PRIVACY, tree.flatten(api.axes(config)), ghost=WAYS.get(way))
    gradients = partial(private.gradients, private=own)
    if way == "clients":
        gradients = partial(federated.gradients, private=own, federated=CLIENTS)
    step = partial(
        train_step,
        config=config,
        optimizer=rule,
        loss=jaxgen.causal_loss,
        gradients=gradients,
    )
    state = jaxgen.train_state(jaxgen.init(config, jax.random.key(0)), rule, jax.random.key(1))
    shardings = mesh and place.state_shardings(mesh, state, api.axes(config))
    run = partitioner.make_step("jit", step, mesh, shardings, ROWS)
    state = state if mesh is None else jax.device_put(state, shardings)
    tokens = np.random.default_rng(0).integers(0, 32, (ROWS, 9)).astype(np.int32)
    weights = np.ones((ROWS, 8), np.float32)
    weights[10:] = 0  # padding
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    state, metrics = run(state, batch)
    return float(metrics["grad_norm"]), jax.device_get(state.params)


def far_private():
    """Return which private steps on a mesh of eight differ from one device's."""
    mesh, wrong = device_mesh.make_mesh(MeshSettings(**parse("data:2,fsdp:2,tensor:2"))), []
    wanted = dict.fromkeys(WAYS, private_step(None, "vmap"))
    wanted["clients"] = private_step(None, "clients")
    for way, one in wanted.items():
        apart = jax.tree.map(
            lambda a, b: float(np.abs(np.subtract(a, b)).max()), private_step(mesh, way), one
        )
        if not (most := max(jax.tree.leaves(apart))) < 1e-5:
            wrong.append(f"private step by {way}: {most}")
    return wrong


def far_adapters():
    """Return which adapters leave one device's course on a mesh of eight."""
    mesh, wrong = device_mesh.make_mesh(MeshSettings(**parse("data:2,fsdp:2,tensor:2"))), []
    for asked, base in ADAPTERS:
        one, other = (adapter_course(at, asked, base) for at in (None, mesh))
        apart = jax.tree.map(lambda a, b: float(np.abs(np.subtract(a, b)).max()), one, other)
        if not (most := max(jax.tree.leaves(apart))) < 1e-5:
            wrong.append(f"{asked} over {base}: {most}")
    return wrong


def main() -> None:
    wanted, wrong = course(None, "jit"), far_adapters() + far_private()
    lax.ragged_all_to_all = ragged_all_to_all  # which XLA has not for CPUs
    for words, form, ragged in MESHES:
        mesh = device_mesh.make_mesh(MeshSettings(**parse(words)))
        with mock.patch.object(experts, "RAGGED", ("cpu",) if ragged else ()):
            found = course(mesh, form)
        apart = jax.tree.map(lambda a, b: float(np.abs(np.subtract(a, b)).max()), found, wanted)
        most = max(jax.tree.leaves(apart))
        if not most < 1e-5 or bool(calls) != ragged:
            wrong.append(f"{words} as {form}: {most}, {len(calls)} ragged all-to-alls")
        calls.clear()
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()

"""Prints how far one adversarial step on eight devices lies from that of one, for each form."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxgen
from jaxgen.mesh import device_mesh, place
from jaxgen.mesh.settings import MeshSettings
from jaxgen.models import api
from jaxgen.train import partitioner
from jaxgen.train.adversarial import perturbed
from jaxgen.train.settings import AdversarialSettings

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=8, layers=1, d_model=16, heads=2, positions="none", dropout=0.1
)
OPTIMIZER = optax.sgd(1.0)
LOSS = perturbed(jaxgen.causal_loss, AdversarialSettings(kind="freelb", epsilon=0.3, steps=2))


def moved(form, mesh):
    params = jaxgen.init(CONFIG, jax.random.key(0))
    state = jaxgen.train_state(params, OPTIMIZER, jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (16, 9), 0, 32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    axes = api.axes(CONFIG)
    where = None if mesh is None else place.state_shardings(mesh, state, axes)
    step = partial(jaxgen.train_step, config=CONFIG, optimizer=OPTIMIZER, loss=LOSS, accumulate=2)
    if where is not None:
        state = jax.device_put(state, where)
        batch = {name: jax.device_get(x) for name, x in batch.items()}
    state, metrics = partitioner.make_step(form, step, mesh, where, 16)(state, batch)
    return jax.device_get(state.params), float(metrics["objective"])


one, loss = moved("jit", None)
faults = []
for form in ("jit", "shard_map"):
    mesh = device_mesh.make_mesh(MeshSettings(data=4, fsdp=2, form=form))
    other, again = moved(form, mesh)
    apart = max(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one, other)))
    faults.append([form, float(apart), abs(loss - again)])
print(json.dumps(faults))

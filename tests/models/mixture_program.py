"""A mixture of experts trained on eight devices: prints which meshes leave one device's course."""

import json

import jax
import numpy as np
import optax

import jaxgen
from jaxgen.config_experts import Experts
from jaxgen.mesh import MeshSettings, device_mesh, place
from jaxgen.mesh.settings import parse
from jaxgen.models import api
from jaxgen.train import partitioner
from jaxgen.train.step import train_step

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=8, layers=1, d_model=16, heads=4, d_ff=16, norm="rms",
    positions="rope", feed="swiglu", biases="feed",
    experts=Experts(number=8, active=2, balance=0.01, z=1e-3, shared=8, choice_bias="bias",
                    router="sigmoid"),
)  # fmt: skip
RULE, STEPS, ROWS = optax.sgd(0.3), 20, 16
MESHES = {"fsdp:2,expert:2,tensor:2": "jit", "data:2,expert:4": "shard_map"}


def step(state, batch, **more):
    return train_step(
        state, batch, config=CONFIG, optimizer=RULE, loss=jaxgen.causal_loss, spike=None, **more
    )


def course(mesh, form):
    """Return the losses of some steps, and the parameters after them."""
    params = jaxgen.init(CONFIG, jax.random.key(0))
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


def main() -> None:
    wanted, wrong = course(None, "jit"), []
    for words, form in MESHES.items():
        mesh = device_mesh.make_mesh(MeshSettings(**parse(words)))
        found = course(mesh, form)
        apart = jax.tree.map(lambda a, b: float(np.abs(np.subtract(a, b)).max()), found, wanted)
        most = max(jax.tree.leaves(apart))
        if not most < 1e-5:
            wrong.append(f"{words} as {form}: {most}")
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()

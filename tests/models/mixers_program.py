"""Latent attention and the delta rule on eight devices: which meshes leave one device's course."""

import json
import os

import jax
import numpy as np
import optax

import jaxgen
from jaxgen.mesh import MeshSettings, device_mesh, place
from jaxgen.mesh.settings import parse
from jaxgen.models import api
from jaxgen.train import partitioner
from jaxgen.train.step import train_step

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=16, layers=2, d_model=16, heads=4, d_ff=16, norm="rms",
    positions="rope", feed="swiglu", biases="none", init_std=0.2,
    pattern=("linear", "global"), kinds={"linear": jaxgen.LayerKind(mixer="delta")},
    delta=jaxgen.Delta(key_heads=2, value_heads=4, key_width=4, value_width=4),
    latent=jaxgen.Latent(q_rank=8, kv_rank=8, rope_width=4, plain_width=4, value_width=4),
)  # fmt: skip
RULE, STEPS, ROWS, T = optax.sgd(0.1), 2, 8, 16
# The mesh, its form, and what the backward pass recomputes.
MESHES = [
    ("fsdp:2,tensor:2,sequence:2", "jit", "full"),
    ("data:2,fsdp:4", "shard_map", "dots"),
]
MESHES = MESHES if os.environ.get("JAXGEN_NIGHTLY") else MESHES[:1]


def batches():
    """Yield the batches of a course: rows of two texts each, whose border moves."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = rng.integers(0, 32, (ROWS, T + 1)).astype(np.int32)
        second = np.arange(T)[None] >= rng.integers(3, T - 3, (ROWS, 1))
        begins = np.argmax(second, axis=1)[:, None]
        positions = np.where(second, np.arange(T) - begins, np.arange(T)).astype(np.int32)
        segments = 1 + second.astype(np.int32)
        yield {"tokens": tokens[:, :-1], "targets": tokens[:, 1:],
               "positions": positions, "segments": segments}  # fmt: skip


def course(mesh, form, remat):
    """Return the losses of some steps, and the parameters after them."""
    config = CONFIG.replace(remat=remat)

    def step(state, batch, **more):
        return train_step(
            state, batch, config=config, optimizer=RULE, loss=jaxgen.causal_loss, spike=None, **more
        )

    params = jaxgen.init(config, jax.random.key(0))
    state = jaxgen.train_state(params, RULE, jax.random.key(1))
    shardings = None if mesh is None else place.state_shardings(mesh, state, api.axes(config))
    run = partitioner.make_step(form, step, mesh, shardings, ROWS)
    state = state if mesh is None else jax.device_put(state, shardings)
    losses = []
    for batch in batches():
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def main() -> None:
    """Print what is farther from one device's course than rounding."""
    wanted, wrong = course(None, "jit", "none"), []
    for words, form, remat in MESHES:
        mesh = device_mesh.make_mesh(MeshSettings(**parse(words)))
        found = course(mesh, form, remat)
        apart = jax.tree.map(lambda a, b: float(np.abs(np.subtract(a, b)).max()), found, wanted)
        if not (most := max(jax.tree.leaves(apart))) < 1e-5:
            wrong.append(f"{words} as {form}, remat={remat}: {most}")
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()

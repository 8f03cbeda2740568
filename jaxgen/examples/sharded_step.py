"""One training step on eight devices: parameters laid out by their logical axes.

Run it anywhere: without eight devices it makes them of one CPU. `jaxgen.axes` names each
parameter's axes by letters (B batch, D model, N heads, F feed-forward, V vocabulary, ...), and a
rule says which letters go to which axis of the mesh; `jaxgen train mesh=data:2,fsdp:4` does the
same from a config.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgen

RULES = {"D": "fsdp", "N": None, "F": None, "V": None}  # FSDP: share the model axis


def main() -> None:
    if len(jax.devices()) < 8:
        raise SystemExit("eight devices are needed; unset XLA_FLAGS or run on a larger machine")
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    config = jaxgen.ModelConfig(
        vocab_size=64, context=32, layers=2, d_model=64, heads=4, positions="rope"
    )
    optimizer = optax.adamw(1e-3)

    def layout(letters):
        return NamedSharding(mesh, P(*(RULES.get(letter) for letter in letters)))

    params = jaxgen.init(config, jax.random.key(0))
    placed = jax.device_put(params, jax.tree.map(layout, jaxgen.axes(config)))
    tokens = jax.random.randint(jax.random.key(1), (16, 33), 0, 64)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    rows = jax.device_put(batch, NamedSharding(mesh, P(("data", "fsdp"))))

    step = partial(jaxgen.train_step, config=config, optimizer=optimizer, loss=jaxgen.causal_loss)
    alone = jax.jit(step)(jaxgen.train_state(params, optimizer, jax.random.key(2)), batch)[1]
    with jax.set_mesh(mesh):
        training = jaxgen.train_state(placed, optimizer, jax.random.key(2))
        training, metrics = jax.jit(step, donate_argnums=0)(training, rows)
    q = training.params["layers"]["attn"]["q"]
    print(f"attn/q {q.shape}: {q.addressable_shards[0].data.shape} on each of {len(q.devices())}")
    print(f"loss on eight devices {metrics['loss']:.6f}, on one {alone['loss']:.6f}")
    assert jnp.allclose(metrics["loss"], alone["loss"], rtol=1e-5)


if __name__ == "__main__":
    main()

"""Train several seeds at once with vmap: one program, a curve for each, their spread.

Everything in the face is a pure function, so a seed is one more axis of the parameters.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxgen

SEEDS, STEPS = 4, 40


def main() -> None:
    config = jaxgen.ModelConfig(
        vocab_size=32, context=16, layers=1, d_model=32, heads=2, positions="rope"
    )
    optimizer = optax.adam(5e-3)
    tokens = (jnp.arange(13)[None] + jnp.arange(16)[:, None]) % 32  # texts that count
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    def begin(key):
        return jaxgen.train_state(jaxgen.init(config, key), optimizer, key)

    step = partial(jaxgen.train_step, config=config, optimizer=optimizer, loss=jaxgen.causal_loss)
    states = jax.jit(jax.vmap(begin))(jax.random.split(jax.random.key(0), SEEDS))
    step_all = jax.jit(jax.vmap(step, in_axes=(0, None)), donate_argnums=0)
    losses = []
    for number in range(STEPS):
        states, metrics = step_all(states, batch)
        losses.append(metrics["loss"])
        if number % 10 == 0 or number == STEPS - 1:
            print(f"step {number:2d}  loss {losses[-1].mean():.3f} +- {losses[-1].std():.3f}")
    assert losses[-1].shape == (SEEDS,) and jnp.all(losses[-1] < 0.5)

    one = jax.tree.map(lambda x: x[0], states.params)  # the first seed's model, as any other
    print(jaxgen.generate(one, config, jnp.array([[3, 4, 5]]), jax.random.key(1), length=6))


if __name__ == "__main__":
    main()

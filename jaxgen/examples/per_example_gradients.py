"""Per-example gradients with vmap: norms of each row, and a clipped mean (the core of DP-SGD).

`causal_loss` is a pure function, so `jax.vmap(jax.grad(...))` is all that it takes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen

CLIP = 1.0


def row_loss(params, row, *, config):
    """Return the mean loss of one row {"tokens": [T], "targets": [T]}."""
    batch = jax.tree.map(lambda x: x[None], row)
    result = jaxgen.causal_loss(params, config, batch)
    return result.total / result.weight


@partial(jax.jit, static_argnames="config")
def clip_and_average(params, batch, *, config):
    """Return (mean of the rows' gradients, each scaled to a norm of CLIP at most; norms [B])."""
    by_row = jax.vmap(jax.grad(partial(row_loss, config=config)), in_axes=(None, 0))(params, batch)
    norms = jax.vmap(optax.global_norm)(by_row)
    scale = jnp.minimum(1.0, CLIP / norms)
    mean = jax.tree.map(lambda g: jnp.tensordot(scale, g, axes=1) / len(scale), by_row)
    return mean, norms


def main() -> None:
    config = jaxgen.ModelConfig(
        vocab_size=64, context=32, layers=2, d_model=32, heads=2, positions="rope"
    )
    params = jaxgen.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 64)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    mean, norms = clip_and_average(params, batch, config=config)
    print("norms of the rows' gradients:", jnp.round(norms, 2))
    print(f"norm of the clipped mean: {optax.global_norm(mean):.3f} (at most {CLIP})")

    # The mean of the rows' own gradients is the gradient of the whole batch.
    @jax.jit
    def gradients(params):
        full = jax.grad(lambda p: jaxgen.causal_loss(p, config, batch).total / tokens[:, 1:].size)
        rows = jax.vmap(jax.grad(partial(row_loss, config=config)), in_axes=(None, 0))
        return full(params), jax.tree.map(lambda g: g.mean(0), rows(params, batch))

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *gradients(params))
    assert optax.global_norm(mean) <= CLIP


if __name__ == "__main__":
    main()

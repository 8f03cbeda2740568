"""Make a model smaller and see what it costs: 4 bits a weight, rounded, then by GPTQ.

What `jaxgen compress MODEL --recipe int4-gptq --out SMALL` does, from Python: a recipe, some rows
of calibration text, and the new weights as leaves of the same tree, which decode as before.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from jaxgen import tree
from jaxgen.compress.recipe import Recipe
from jaxgen.compress.write import assemble, compress_layers

CONFIG = jaxgen.ModelConfig(
    vocab_size=64, context=64, layers=2, d_model=64, heads=4, d_ff=128, positions="rope"
)
STEPS = 60


def rows_of(key, count):
    """Return rows of counting with random steps, ids [count, 33]."""
    first, step = jax.random.randint(key, (2, count, 1), 0, 64)
    return (first + (1 + step % 3) * jnp.arange(33)) % 64


def trained():
    """Return parameters that have learned to count."""
    rule = optax.adam(1e-2)
    state = jaxgen.train_state(jaxgen.init(CONFIG, jax.random.key(0)), rule, jax.random.key(1))
    for number in range(STEPS):
        ids = rows_of(jax.random.key(number), 32)
        batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
        options = {"config": CONFIG, "optimizer": rule, "loss": jaxgen.causal_loss}
        state, _ = jaxgen.train_step(state, batch, **options)
    return state.params


def main() -> None:
    params = trained()
    calibration = np.asarray(rows_of(jax.random.key(1000), 16), np.int32)
    test = rows_of(jax.random.key(2000), 64)
    batch = {"tokens": test[:, :-1], "targets": test[:, 1:]}

    def loss(params):
        found = jaxgen.causal_loss(params, CONFIG, batch)
        return float(found.total / found.weight)

    print(f"as it is: loss {loss(params):.4f}")
    for method in ("round", "gptq"):
        recipe = Recipe(format="int4", method=method)
        text = calibration if recipe.calibrates else None
        receipt = compress_layers(params, CONFIG, recipe, text, Path(f"parts-{method}"))
        flat = tree.flatten(params)
        assemble(flat, CONFIG, recipe, Path(f"parts-{method}"))
        print(f"int4, {method}: loss {loss(tree.unflatten(flat)):.4f}")
    beaten = [row["error"] < row["nearest"] for row in receipt["matrices"]]
    assert all(beaten)
    print(f"gptq loses less than rounding in all {len(beaten)} matrices")


if __name__ == "__main__":
    main()

"""Differential privacy in a training step of your own: clipped rows, noise, and what they cost.

The gradient of each row is clipped and noise is added to their sum (DP-SGD, Abadi et al. 2016); no
gradient of a single row is ever written down ("ghost norms"). Needs the extra `jaxgen[privacy]`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from jaxgen import tree
from jaxgen.models import api
from jaxgen.privacy.accountant import Mechanism, epsilon
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.train.private import CausalGhost, Private, gradients

POPULATION, ROWS, STEPS, DELTA = 1_000, 32, 20, 1e-5
EXPECTED = 12.0  # rows of a step; 32 hold what is drawn, nearly always


def main() -> None:
    config = jaxgen.ModelConfig(vocab_size=32, context=16, layers=2, d_model=16, heads=2)
    texts = np.random.default_rng(0).integers(0, 32, (POPULATION, 17))
    settings = PrivacySettings(
        noise_multiplier=0.7, delta=DELTA, clip=1.0, expected=EXPECTED, seed=2026
    )
    letters = tree.flatten(api.axes(config))
    ghost = CausalGhost(lambda params, key: params, smoothing=0.0, z=0.0, chunk=None)
    private = partial(gradients, private=Private(settings, letters, ghost=ghost))

    rule = optax.adam(1e-3)
    fixed = {"config": config, "optimizer": rule, "loss": jaxgen.causal_loss}
    step = jax.jit(partial(jaxgen.train_step, **fixed, gradients=private), donate_argnums=0)
    state = jaxgen.train_state(jaxgen.init(config, jax.random.key(0)), rule, jax.random.key(1))
    draw, metrics = np.random.default_rng(1), {}
    for _ in range(STEPS):
        chosen = np.flatnonzero(draw.random(POPULATION) < EXPECTED / POPULATION)[:ROWS]
        rows = np.pad(texts[chosen], ((0, ROWS - len(chosen)), (0, 0)))
        weights = jnp.broadcast_to(jnp.arange(ROWS)[:, None] < len(chosen), (ROWS, 16))
        batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": weights * 1.0}
        state, metrics = step(state, batch)
    mechanism = Mechanism(0.7, EXPECTED / POPULATION, POPULATION, ROWS)
    spent = epsilon(mechanism, STEPS, DELTA)
    print(f"loss {metrics['loss']:.3f} after {STEPS} steps; epsilon {spent:.2f} at delta {DELTA:g}")
    assert 0 < spent < 8


if __name__ == "__main__":
    main()

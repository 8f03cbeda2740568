"""Federated training in a loop of your own: clients train, masked parts are summed, some are lost.

Each of eight clients has text of its own kind. A round is a step: what its clients have moved, by
their tokens, is the gradient of the server's optimizer (FedAvg with SGD, FedAdam with Adam). Parts
are summed as integers beneath masks that cancel, so that the server sees their sum alone.
"""

from functools import partial

import jax
import numpy as np
import optax

import jaxgen
from jaxgen.privacy.settings import FederatedSettings
from jaxgen.train.federated import Federated, gradients

CLIENTS, ROUND, STEPS, ROWS, LENGTH = 8, 4, 2, 4, 12


def text_of(client: int, draw: np.random.Generator) -> np.ndarray:
    """Return rows of a client, each of whose tokens follows from the one before."""
    rows = [draw.integers(0, 16, (STEPS * ROWS, 1))]
    for _ in range(LENGTH):
        rows.append((rows[-1] * 3 + client % 2) % 16)
    return np.concatenate(rows, axis=1)


def main() -> None:
    config = jaxgen.ModelConfig(vocab_size=16, context=LENGTH, layers=1, d_model=16, heads=2)
    settings = FederatedSettings(
        clients=ROUND, local_steps=STEPS, learning_rate=0.3, proximal=0.01, secure=1.0
    )
    rule = optax.adam(3e-2)
    step = jax.jit(
        partial(
            jaxgen.train_step,
            config=config,
            optimizer=rule,
            loss=jaxgen.causal_loss,
            gradients=partial(gradients, federated=Federated(settings)),
        ),
        donate_argnums=0,
    )
    state = jaxgen.train_state(jaxgen.init(config, jax.random.key(0)), rule, jax.random.key(1))
    draw, losses = np.random.default_rng(2), []
    for number in range(40):
        chosen = draw.choice(CLIENTS, ROUND, replace=False)
        tokens = np.concatenate([text_of(client, draw) for client in chosen]).astype(np.int32)
        lost = np.repeat((draw.random(ROUND) < 0.1).astype(np.float32), STEPS * ROWS)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "lost": lost}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if number % 10 == 9:
            print(f"round {number + 1}: loss {losses[-1]:.3f}, {metrics['arrived']:.0f} arrived")
    assert losses[-1] < 0.8 * losses[0]


if __name__ == "__main__":
    main()

"""Explain a token: what it owes to the tokens before it, and what the layers and heads add.

All of it are functions of (params, config, tokens), so it works with any model that `jaxgen.load`
returns; `jaxgen explain RUN --prompt ...` makes a page of the same. Here the model is a small one
with random weights.
"""

import jax
import jax.numpy as jnp

import jaxgen
from jaxgen import explain


def main() -> None:
    config = jaxgen.ModelConfig(
        vocab_size=32, context=64, layers=2, d_model=16, heads=4, positions="rope", init_std=0.3
    )
    params = jaxgen.init(config, jax.random.key(0))
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]

    # Why token 6 at place 7, and why not token 0? In nats of log-probability.
    score, vectors = explain.token_scores(params, config, tokens, [7], foils=[0])
    nothing = params["embed"]["tokens"].mean(axis=0)  # stands for no token in particular
    why = explain.integrated_gradients(score, vectors, baseline=nothing)
    for token, value in zip(tokens, why.values[0].tolist(), strict=False):
        print(f"token {token}: {value:+.3f}")
    assert why.gap[0] < 1e-3  # the values explain the whole difference
    exact = explain.shapley(score, vectors, baseline=nothing)  # of 7 tokens there are 128 subsets
    print(
        f"Shapley values sum to {exact.values.sum():.3f}, so do gradients: {why.values.sum():.3f}"
    )

    # Is the order that they give better than chance?
    key = jax.random.key(1)
    curves = explain.faithfulness(score, vectors, why.values, key, baseline=nothing)
    print(f"area between insertion and deletion beyond random orders: {curves.gain[0]:+.2f}")

    # What the layers and heads do: the logit is the sum of its parts.
    ids, places, targets = jnp.array([tokens]), jnp.array([6]), jnp.array([6])
    parts = explain.direct_logits(params, config, ids, places, targets)
    ((layer, head, amount),) = explain.largest(parts.heads[:, 0], 1)
    print(f"head {head} of layer {layer} adds most: {amount:+.3f} of {parts.logit[0]:.3f}")
    assert jnp.allclose(parts.total, parts.logit, atol=1e-4)

    # Causes: put the states of another prompt in, one position of one layer at a time.
    other = jnp.array([3, 1, 7, 1, 5, 9, 2, 6])
    effects = explain.patch(params, config, ids[0], other, target=0)
    print(f"the last state carries all of the change: {effects.share[-1, -1]:.2f}")


if __name__ == "__main__":
    main()

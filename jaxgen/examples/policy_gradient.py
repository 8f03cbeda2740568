"""Policy gradient through `generate`: sample, reward, and weigh each text's loss by its advantage.

The whole step is one jitted function: the decoder samples inside it, the reward is a pure function
of tokens, and the loss is `causal_loss` with one weight per row (REINFORCE with a mean baseline,
Williams 1992). The model learns to write only the token 7.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxgen

TARGET, LENGTH, ROWS, STEPS = 7, 8, 64, 60


def reward(tokens):
    """Return the share of TARGET in each text [B, T], in [0, 1]."""
    return jnp.mean(tokens == TARGET, axis=1)


def loss(params, config, prompt, sampled, advantage):
    """Return -mean(advantage * log p(sampled | prompt)); its gradient is the policy gradient."""
    texts = jnp.concatenate([prompt, sampled], axis=1)
    is_sampled = (
        jnp.arange(texts.shape[1] - 1) >= prompt.shape[1] - 1
    )  # targets that the model drew
    weights = jnp.broadcast_to(is_sampled * advantage[:, None], (len(texts), texts.shape[1] - 1))
    batch = {"tokens": texts[:, :-1], "targets": texts[:, 1:], "weights": weights}
    return jaxgen.causal_loss(params, config, batch).total / sampled.size


def step(params, moments, key, *, config, optimizer):
    """Return (params, optimizer state, mean reward) after one step of REINFORCE."""
    prompt = jnp.ones((ROWS, 2), jnp.int32)
    sampled = jaxgen.generate(
        params, config, prompt, key, length=LENGTH, sample=jaxgen.chain(jaxgen.temperature(1.0))
    )
    rewards = reward(sampled)
    grads = jax.grad(loss)(params, config, prompt, sampled, rewards - rewards.mean())
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments, rewards.mean()


def main() -> None:
    config = jaxgen.ModelConfig(
        vocab_size=16, context=16, layers=1, d_model=32, heads=2, positions="rope"
    )
    params, optimizer = jaxgen.init(config, jax.random.key(0)), optax.adam(1e-2)
    moments = optimizer.init(params)
    one = jax.jit(partial(step, config=config, optimizer=optimizer), donate_argnums=(0, 1))
    means = []
    for number in range(STEPS):
        params, moments, mean = one(params, moments, jax.random.key(number))
        means.append(mean)
        if number % 10 == 0 or number == STEPS - 1:
            print(f"step {number:2d}  mean reward {mean:.3f}")
    assert means[-1] > 0.9


if __name__ == "__main__":
    main()

"""Policy gradients: advantages within groups, and the loss where it is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.train.policy import advantages, policy_loss, token_logps

CONFIG = jaxgen.ModelConfig(vocab_size=8, context=4, layers=1, d_model=8, heads=2)


def test_an_advantage_is_over_the_others_of_the_group():
    rewards = jnp.array([1.0, 0.0, 4.0, 4.0])
    np.testing.assert_allclose(advantages(rewards, 2, scale="none"), [0.5, -0.5, 0, 0])
    np.testing.assert_allclose(advantages(rewards, 2, scale="others"), [1, -1, 0, 0])
    scaled = advantages(rewards, 2)
    np.testing.assert_allclose(scaled, [0.70701, -0.70701, 0, 0], atol=1e-4)
    with pytest.raises(ConfigError, match="no groups of group=3"):
        advantages(rewards, 3)


def test_losses_differ_in_what_they_are_a_mean_of():
    params = jaxgen.init(CONFIG, jax.random.key(0))
    ids = jnp.array([[1, 2, 3], [4, 5, 6]])
    batch = {
        "tokens": ids, "targets": ids + 1, "segments": jnp.ones_like(ids),
        "positions": jnp.broadcast_to(jnp.arange(3), ids.shape),
        "weights": jnp.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]),
        "advantage": jnp.array([1.0, -2.0]),
    }  # fmt: skip
    expected = {"grpo": 0.5, "bnpo": 0.0, "dr_grpo": 0.0, "rloo": 0.5}  # the ratio is 1 everywhere
    for name, value in expected.items():
        more = {"length": 5} if name == "dr_grpo" else {}
        found = jax.jit(lambda p, b, n=name, m=more: policy_loss(p, CONFIG, b, loss=n, **m))(
            params, batch
        )
        np.testing.assert_allclose(float(found.total) / float(found.weight), value, atol=1e-6)
    with pytest.raises(ConfigError, match="it is given with dr_grpo"):
        policy_loss(params, CONFIG, batch, length=3)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_probabilities_are_those_of_the_temperature(cap):
    config = CONFIG.replace(logit_cap=cap, init_std=0.5)
    params, ids = jaxgen.init(config, jax.random.key(0)), jnp.array([[1, 2, 3]])
    batch = {
        "tokens": ids, "targets": ids + 1, "segments": jnp.ones_like(ids),
        "positions": jnp.arange(3)[None], "weights": jnp.ones((1, 3)),
    }  # fmt: skip
    logits = jaxgen.apply(params, config, ids).logits / 0.5
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None] + 1, -1)[..., 0]
    found = token_logps(params, config, batch, temperature=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-5)

"""Steering: fused steps move probabilities as their papers say, and bans stay bans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params
from sessions import session_on

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt
from jaxgen.tokens.plain import Bytes

P, E, A = ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.5, 0.0])


def fixed(probabilities):
    logits = jnp.log(jnp.asarray([probabilities]))
    return lambda tokens, cache: (logits, cache)


def probabilities(step, caches):
    logits, _ = step(jnp.array([0]), caches)
    return np.asarray(jax.nn.softmax(logits)[0])


def test_experts_raise_what_they_prefer_and_lower_what_the_other_does():
    step = jaxgen.dexperts(fixed(P), fixed(E), fixed(A), 0.5)
    ratio = np.asarray(E) / np.asarray([*A[:3], 1.0])  # the last is banned by the anti-expert alone
    expected = np.asarray(P) * ratio**0.5
    found = probabilities(step, ((), ((), ())))
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-6)
    off = probabilities(jaxgen.dexperts(fixed(P), fixed(E), fixed(A), 0.0), ((), ((), ())))
    np.testing.assert_allclose(off, P, atol=1e-6)
    banned = probabilities(jaxgen.dexperts(fixed(A), fixed(E), fixed(P), 2.0), ((), ((), ())))
    assert banned[3] == 0


def test_self_debiasing_lowers_what_the_biased_prompt_makes_likelier():
    found = probabilities(jaxgen.self_debias(fixed(P), fixed(E), 10.0), ((), ()))
    difference = np.minimum(np.asarray(P) - np.asarray(E), 0)
    expected = np.asarray(P) * np.exp(10 * difference)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-6)


def test_a_text_is_debiased_against_the_prompt_with_another_before_it():
    config = jaxgen.ModelConfig(vocab_size=259, context=48, layers=1, d_model=16, heads=2)
    params = random_params(config)
    session = session_on(config, params, Bytes())
    how = {"max_new_tokens": 6, "temperature": 0.0}
    steered = Generation(negative_prompt="rude: ", debias=900.0, **how)
    several = [steered, Generation(**how)]
    (found,), (plain,) = session.run([Prompt("ab", one) for one in several], detail=True)
    step, ids = jaxgen.model_step(params, config, 259), [session.ids("ab"), session.ids("rude: ab")]
    caches = [
        jaxgen.prefill(params, config, jnp.array([one]), jnp.array([len(one)]), 40) for one in ids
    ]
    both = jaxgen.self_debias(step, step, 900.0)
    first, cache = caches[0][0], (caches[0][1], caches[1][1])
    loop = (both, cache, first, jax.random.key(0), jaxgen.greedy(), 6)
    expected = jaxgen.decode_detailed(*loop, top=0)
    assert found.tokens == expected.tokens[0].tolist()[: len(found.tokens)]
    assert found.logprobs == pytest.approx(expected.logprobs[0].tolist(), abs=1e-4)
    assert found.logprobs != pytest.approx(plain.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"debias": 10.0}, "without negative_prompt"),
        ({"negative_prompt": "x"}, "no effect without guidance"),
        ({"debias": 10.0, "guidance": 2.0, "negative_prompt": "x"}, "exclude each other"),
        ({"debias": 0.0, "negative_prompt": "x"}, "debias=0.0"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Generation(**settings)

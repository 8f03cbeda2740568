"""A trace shows the very draws that made a text, and each can be made again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params
from sessions import session_on

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.explain.decode_trace import replay, trace
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt
from jaxgen.tokens.plain import Bytes

CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=64, layers=1, d_model=16, heads=2, init_std=0.3, positions="rope"
)
RULES = Generation(
    max_new_tokens=12,
    temperature=0.9,
    top_k=40,
    repetition_penalty=1.3,
    no_repeat_ngram=2,
    suppress_ids=tuple(range(200, 259)),
    seed=7,
)


@pytest.fixture(scope="module")
def session():
    return session_on(CONFIG, random_params(CONFIG), Bytes())


@pytest.fixture(scope="module")
def traced(session):
    return trace(session, Prompt("abcabc", RULES))


def test_the_text_is_the_one_that_is_generated_and_each_token_is_drawn_again(session, traced):
    ((answer,),) = session.run([Prompt("abcabc", RULES)])
    assert (traced.tokens, traced.text) == (answer.tokens, answer.text)
    assert traced.reason is answer.reason and len(traced.steps) == 12
    for place in (0, 3, 11):
        assert replay(session, traced, place) == traced.tokens[place]


def test_stages_follow_the_chain_and_say_which_rule_forbade(session, traced):
    names = ("repetition_penalty", "no_repeat_ngram", "suppress_ids", "temperature", "top_k")
    assert traced.stages == ("model", *names)
    ids = [*traced.ids, *traced.tokens]
    logits = jaxgen.apply(session.params, CONFIG, [ids]).logits[0]
    met = set()
    for place, step in enumerate(traced.steps):
        raw = jax.nn.log_softmax(logits[len(traced.ids) - 1 + place])
        np.testing.assert_allclose(step.logprob[0], raw[step.token], rtol=1e-3, atol=1e-3)
        assert step.rank[0] == 1 + int((raw > raw[step.token]).sum())
        assert step.best[0] == int(raw.argmax()) == step.top_ids[0]
        entropy = -float((jnp.exp(raw) * raw).sum())
        np.testing.assert_allclose(step.entropy[0], entropy, rtol=1e-3)
        assert step.allowed[0] == 259 and step.allowed[-1] <= 40
        assert step.allowed[3] <= 200 < step.allowed[2]
        for number, rule in step.forbidden_by.items():
            met.add(rule)
            column = step.top_ids.index(number)
            shown = [row[column] for row in step.top_logprobs]
            assert shown[traced.stages.index(rule)] is None and shown[0] is not None
            assert number < 200 or rule == "suppress_ids"
    assert "suppress_ids" in met
    assert all(step.logprob[-1] <= 0 for step in traced.steps)


def test_the_random_number_is_what_chose(traced):
    for step in traced.steps:
        key = jax.random.wrap_key_data(jnp.asarray(step.key, jnp.uint32))
        noise = jax.random.gumbel(key, (259,))
        np.testing.assert_allclose(step.noise, noise[step.token], rtol=1e-5)
        assert step.margin > 0 and step.rival != step.token


def test_a_trace_goes_as_json_and_a_greedy_one_has_no_rival(session):
    greedy = Generation(max_new_tokens=6, temperature=0.0, suppress_ids=tuple(range(127, 259)))
    whole = trace(session, Prompt("ab", greedy))
    again = json.loads(json.dumps(whole.as_json(), allow_nan=False))
    assert (
        again["stages"] == ["model", "suppress_ids", "temperature"]
        and again["settings"]["temperature"] == 0
    )
    assert [s["token"] for s in again["steps"]] == whole.tokens
    assert all(s["margin"] is None and s["allowed"][-1] == 1 for s in again["steps"])


@pytest.mark.parametrize(
    "settings",
    [
        *({"beams": 2}, {"contrastive": 0.5, "top_k": 4}, {"lookup": 2}, {"samples": 2}),
        *({"best_of": 2}, {"max_seconds": 1.0}, {"overflow": "slide"}),
    ],
)
def test_what_is_no_single_draw_is_refused(session, settings):
    with pytest.raises(ConfigError, match=f"^{next(iter(settings))}="):
        trace(session, Prompt("ab", Generation(**settings)))

"""Each strategy in one call, on a small Transformer, against what it must equal."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.combined_steps import contrast
from jaxgen.decoding.stop import Reason
from jaxgen.models import api
from jaxgen.nn.unroll import UNROLL_LIMITS

CONFIG = jaxgen.ModelConfig(
    vocab_size=13, context=40, layers=2, d_model=16, heads=2, init_std=0.6, positions="rope",
    pattern=("local",), window=4,
)  # fmt: skip
SMALL = CONFIG.replace(layers=1, pattern=("global",), window=None)
PROMPT, LENGTHS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0]]), jnp.array([5, 2])
KEY = jax.random.key(0)
forward = jax.jit(jaxgen.apply, static_argnums=1)


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(1))


@pytest.fixture(scope="module")
def greedy(params):
    run = jax.jit(jaxgen.generate, static_argnames=("config", "length"))
    return run(params, CONFIG, PROMPT, KEY, length=16, lengths=LENGTHS)


WAYS = {
    "detailed": lambda p, **how: jaxgen.generate_detailed(p, CONFIG, PROMPT, KEY, **how),
    "lookup": lambda p, **how: jaxgen.generate_lookup(p, CONFIG, PROMPT, KEY, count=2, **how),
    "contrastive": lambda p, **how: jaxgen.generate_contrastive(
        p, CONFIG, PROMPT, count=3, penalty=0.3, **how
    ),
    "dola": lambda p, **how: jaxgen.generate_dola(p, CONFIG, PROMPT, KEY, layers="low", **how),
    "beams": lambda p, **how: jaxgen.generate_beams(p, CONFIG, PROMPT, jaxgen.beams(3), **how),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_strategy_tells_lengths_reasons_and_log_probabilities_alike(name, params, greedy):
    stop = jnp.array([int(greedy[0, 2])])
    run = jax.jit(lambda p: WAYS[name](p, length=8, lengths=LENGTHS, stop=stop))
    found = jax.tree.map(lambda x: x[:, 0] if name == "beams" and x.ndim > 1 else x, run(params))
    assert found.tokens.shape == found.logprobs.shape == (2, 8)
    if name in ("detailed", "lookup"):
        assert found.num_generated[0] == greedy[0].tolist().index(int(stop[0])) + 1
    for row, (length, size) in enumerate(zip(LENGTHS, found.num_generated, strict=True)):
        text = found.tokens[row, :size]
        ended = stop[0] in text.tolist()
        assert found.reason[row] == (Reason.STOP if ended else Reason.LENGTH)
        assert ended or size == 8
        assert (found.tokens[row, size:] == text[-1]).all()
        assert (found.logprobs[row, size:] == 0).all()
        if name != "dola":  # its distribution is no layer's
            ids = jnp.zeros(13, jnp.int32).at[:length].set(PROMPT[row, :length])
            ids = ids.at[length : length + size].set(text)
            logits = forward(params, CONFIG, ids[None]).logits[0]
            said = jax.nn.log_softmax(logits)[jnp.arange(size) + length - 1, text]
            np.testing.assert_allclose(found.logprobs[row, :size], said, atol=1e-4)


def test_a_draft_says_what_the_model_would_have_said(params, greedy):
    draft = jax.jit(jaxgen.init, static_argnums=0)(SMALL, jax.random.key(2))
    pieces = [b"<%d>" % token for token in range(13)]
    text = b"".join(pieces[token] for token in greedy[0].tolist()).decode()
    string = f"{greedy[0, 5]}><{greedy[0, 6]}"
    ends = text[: text.index(string) + len(string)].count("<")

    @jax.jit
    def run(params, draft):
        given = {"length": 16, "count": 3, "lengths": LENGTHS, "layout": "ring"}
        strings = jaxgen.stop_strings([[string], []], pieces)
        return jaxgen.generate_speculative(
            *(params, CONFIG, draft, SMALL, PROMPT, KEY), strings=strings, **given
        )

    found = run(params, draft)
    assert found.tokens[1].tolist() == greedy[1].tolist()
    assert found.num_generated.tolist() == [ends, 16] and ends < 16
    assert found.reason.tolist() == [Reason.STRING, Reason.LENGTH]
    assert found.tokens[0, :ends].tolist() == greedy[0, :ends].tolist()
    assert 0 < int(found.accepted.sum()) < int(found.guessed.sum()) and int(found.steps) < 16


def test_a_text_may_draft_itself(params, greedy):
    run = jax.jit(jaxgen.generate_lookup, static_argnames=("config", "length", "count", "layout"))
    found = run(params, CONFIG, PROMPT, KEY, length=16, count=3, lengths=LENGTHS, layout="ring")
    assert found.tokens.tolist() == greedy.tolist()
    assert found.accepted.sum() > 0


def test_a_ring_that_can_not_take_guesses_back_is_refused(params):
    cache = api.empty_cache(CONFIG, 2, 30, layout="ring")
    read = lambda tokens, cache: (tokens, cache)  # noqa: E731
    with pytest.raises(errors.ConfigError, match=r"back up to 4 tokens.*slack=0.*slack=3"):
        jaxgen.speculate(
            *(read, cache, PROMPT[:, 0], KEY, jaxgen.greedy(), 4, jaxgen.lookup(3)), prompt=PROMPT
        )


def test_contrastive_search_in_one_call_is_greedy_without_a_penalty(params, greedy):
    run = jax.jit(jaxgen.generate_contrastive, static_argnames=("config", "length", "count"))
    given = {"length": 16, "count": 4, "lengths": LENGTHS}
    found = run(params, CONFIG, PROMPT, penalty=jnp.zeros(2), **given)
    assert found.tokens.tolist() == greedy.tolist()
    other = run(params, CONFIG, PROMPT, penalty=jnp.array([0.0, 0.9]), **given)
    assert (
        other.tokens[0].tolist() == greedy[0].tolist()
        and other.tokens[1].tolist() != greedy[1].tolist()
    )


def test_dola_in_one_call_takes_the_tokens_of_its_contrast(params, greedy):
    run = jax.jit(jaxgen.generate_dola, static_argnames=("config", "length", "layers"))
    found = run(params, CONFIG, PROMPT, KEY, length=6, layers=(0, 1), lengths=LENGTHS).tokens
    early = jax.jit(partial(api.early_logits, config=CONFIG, layers=(0, 1)))
    for row, length in enumerate(LENGTHS.tolist()):
        ids = [*PROMPT[row, :length].tolist(), *found[row].tolist()]
        out, layers = early(params, tokens=jnp.array([ids + [0] * (11 - len(ids))]))
        places = jnp.arange(length - 1, length + 5)
        wanted = contrast(out.logits[0, places], layers[:, 0, places])
        assert found[row].tolist() == wanted.argmax(-1).tolist()
    assert found.tolist() != greedy[:, :6].tolist()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"vocab_size": 14}, "vocab_size=14 is not the model's vocab_size=13"),
        ({"context": 20}, "exceed context=20"),
        ({"topology": "encoder_decoder"}, "topology=encoder_decoder; give a decoder"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(params, change, text):
    draft, given = SMALL.replace(**change), {"length": 16, "count": 3}
    of_draft = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jaxgen.abstract(draft))
    with pytest.raises(errors.ConfigError, match=text):
        jaxgen.generate_speculative(params, CONFIG, of_draft, draft, PROMPT, KEY, **given)


def test_layers_that_are_not_there_are_refused(params):
    for layers in ((2,), (-1,), ()):
        with pytest.raises(errors.ConfigError, match="numbers from 0 to 1 of layers=2"):
            jaxgen.generate_dola(params, CONFIG, PROMPT, KEY, length=4, layers=layers)


def test_every_strategy_decodes_through_unrolled_layers(monkeypatch):
    config = SMALL.replace(layers=7)  # a number that no other loop has
    draft = SMALL.replace(layers=11)
    ways = {
        "generate": lambda p, d: jaxgen.generate(p, config, PROMPT, KEY, length=4),
        "beams": lambda p, d: jaxgen.generate_beams(p, config, PROMPT, jaxgen.beams(2), length=4),
        "dola": lambda p, d: jaxgen.generate_dola(p, config, PROMPT, KEY, length=4, layers="low"),
        "contrastive": lambda p, d: jaxgen.generate_contrastive(
            p, config, PROMPT, length=4, count=2, penalty=0.5
        ),
        "lookup": lambda p, d: jaxgen.generate_lookup(p, config, PROMPT, KEY, length=4, count=2),
        "draft": lambda p, d: jaxgen.generate_speculative(
            p, config, d, draft, PROMPT, KEY, length=4, count=2
        ),
    }
    shapes = jaxgen.abstract(config), jaxgen.abstract(draft)

    def traced(way):
        # Another function each time, for JAX keeps what it has traced.
        return str(jax.make_jaxpr(lambda p, d: way(p, d))(*shapes))

    for name, way in ways.items():
        assert "length=7" in traced(way), name  # a model not worth it
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 48))  # as of one that is
    for name, way in ways.items():
        assert not {"length=7", "length=11"} & set(traced(way).split()), name

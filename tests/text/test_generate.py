"""Generation agrees with the plain loop over full forward passes, whatever shares its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import chain, errors, temperature, top_p
from jaxgen.decoding.loop import request_keys

CONFIG = jaxgen.ModelConfig(
    vocab_size=29, context=40, layers=2, d_model=16, heads=2, init_std=0.4, positions="rope"
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))


generate = jax.jit(jaxgen.generate, static_argnames=("config", "length"))
PROMPT = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [7, 0, 0, 0, 0]])
LENGTHS = jnp.array([5, 3, 1])


@jax.jit
def next_token(params, ids, place, sample, key):
    logits = jaxgen.apply(params, CONFIG, ids).logits[:, place]
    return sample(logits, key[None])[0]


def in_python(params, ids, key, sample, length):
    """One request, by a full forward pass of the whole text for every token."""
    ids = list(ids)
    for place in range(length):
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(ids)] = ids
        draw = jax.random.fold_in(key, place)
        ids.append(int(next_token(params, padded, len(ids) - 1, sample, draw)))
    return ids[-length:]


@pytest.mark.parametrize("sample", [None, chain(temperature(0.8), top_p(0.9))])
def test_ragged_generation_matches_a_loop_over_full_forward_passes(params, sample):
    key = jax.random.key(11)
    found = generate(params, CONFIG, PROMPT, key, length=12, sample=sample, lengths=LENGTHS)
    keys = request_keys(key, 3)
    for row, length in enumerate(LENGTHS.tolist()):
        ids = PROMPT[row, :length].tolist()
        draw = sample or chain(temperature(0.0))
        assert found[row].tolist() == in_python(params, ids, keys[row], draw, 12)


def test_a_request_alone_makes_the_same_text_as_in_a_batch(params):
    sample, key = chain(temperature(1.0)), jax.random.key(2)
    together = generate(params, CONFIG, PROMPT, key, length=20, sample=sample, lengths=LENGTHS)
    keys = request_keys(key, 3)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = generate(
            params,
            CONFIG,
            PROMPT[row : row + 1, :length],
            keys[row : row + 1],
            length=20,
            sample=sample,
        )
        assert alone[0].tolist() == together[row].tolist()


def test_generation_stops_at_a_stop_token(params):
    free = generate(params, CONFIG, PROMPT[:1], jax.random.key(0), length=10)[0].tolist()
    stop = free[4]
    ended = generate(
        params, CONFIG, PROMPT[:1], jax.random.key(0), length=10, stop=jnp.array([stop])
    )
    at = free.index(stop)
    assert ended[0].tolist() == free[: at + 1] + [stop] * (9 - at)


def test_generation_stops_at_a_string_of_two_tokens(params):
    pieces = [b"<%d>" % token for token in range(29)]
    free = generate(params, CONFIG, PROMPT[:1], jax.random.key(0), length=10)[0].tolist()
    string = f"{free[3]}><{free[4]}"
    strings = jaxgen.stop_strings([string], pieces)
    found = generate(params, CONFIG, PROMPT[:1], jax.random.key(0), length=10, strings=strings)
    text = "".join(pieces[token].decode() for token in free)
    ends = text[: text.index(string) + len(string)].count("<")
    assert found[0].tolist() == free[:ends] + [free[ends - 1]] * (10 - ends) and ends < 10


def test_sampling_settings_are_arguments_of_the_compiled_program(params):
    sizes = []
    for value in (0.5, 0.9):
        generate(
            params, CONFIG, PROMPT, jax.random.key(0), length=3, sample=chain(temperature(value))
        )
        sizes.append(generate._cache_size())
    assert sizes[0] == sizes[1]


def test_what_does_not_fit_the_context_is_refused_before_compiling(params):
    with pytest.raises(errors.ConfigError, match=r"prompt of 5 .* length=36 .* context=40.* 35"):
        jaxgen.generate(params, CONFIG, PROMPT, jax.random.key(0), length=36)
    with pytest.raises(errors.ConfigError, match="length=0"):
        jaxgen.generate(params, CONFIG, PROMPT, jax.random.key(0), length=0)
    with pytest.raises(errors.ConfigError, match="prompt of 0"):
        jaxgen.generate(params, CONFIG, PROMPT[:, :0], jax.random.key(0), length=3)


def test_numpy_prompts_are_taken_as_they_are(params):
    ids = np.asarray(PROMPT)
    found = jaxgen.generate(params, CONFIG, ids[:1], jax.random.key(0), length=2)
    assert found.shape == (1, 2)

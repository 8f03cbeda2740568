"""Activations changed where taps show them, and inputs that are vectors instead of tokens."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from random_params import random_params

import jaxgen
from jaxgen import tree
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.nn.unroll import unroll

SIZES = {"vocab_size": 19, "context": 16, "layers": 3, "d_model": 8, "heads": 2}
WIRINGS = {
    "learned": {},
    "rope": {"positions": "rope", "norm": "rms", "feed": "silu", "feed_gate": True},
    "pattern": {"positions": "rope", "pattern": ("local", "global"), "window": 2},
    "scaled": {"embed_scale": "root", "norm_at": "both", "output": "untied"},
    "remat": {"remat": "full", "positions": "sinusoid"},
    "encoder": {"topology": "encoder", "head": "lm", "token_types": 2, "embed_norm": "norm"},
    "two towers": {"topology": "encoder_decoder", "positions": "relative"},
}
TOKENS = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]])
SOURCE = jnp.array([[3, 1, 4], [1, 5, 9]])


def make(wiring):
    fields = {name: value for name, value in WIRINGS[wiring].items() if name != "feed_gate"}
    config = jaxgen.ModelConfig(**SIZES, **fields)
    return config, random_params(config)


def run(config, params, tokens=TOKENS, *, source=SOURCE, **options):
    memory = None
    if config.topology == "encoder_decoder":
        inner = {"interventions": options.pop("encoder", None)}
        memory = jaxgen.encode(params, config, source, **inner)
    return jaxgen.apply(params, config, tokens, memory=memory, **options)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_rows_of_the_table_as_inputs_equal_their_tokens(wiring):
    config, params = make(wiring)
    table = params["embed"]["tokens"]
    plain = run(config, params)
    found = run(config, params, None, inputs_embeds=table[TOKENS])
    np.testing.assert_array_equal(found.logits, plain.logits)
    if config.topology != "decoder":
        wanted = jaxgen.encode(params, config, SOURCE)
        given = jaxgen.encode(params, config, inputs_embeds=table[SOURCE])
        np.testing.assert_array_equal(given.state, wanted.state)
        np.testing.assert_array_equal(given.segments, wanted.segments)


def test_the_gradient_of_inputs_is_that_of_the_tables_rows():
    config, params = make("scaled")  # whose output has a table of its own
    table = params["embed"]["tokens"]

    def loss(logits):
        return (jax.nn.log_softmax(logits)[..., 0] ** 2).sum()

    def of_table(table):
        own = tree.unflatten(tree.flatten(params) | {"embed/tokens": table})
        return loss(jaxgen.apply(own, config, TOKENS).logits)

    def of_inputs(embeds):
        return loss(jaxgen.apply(params, config, inputs_embeds=embeds).logits)

    each = jax.grad(of_inputs)(table[TOKENS])
    summed = jnp.zeros_like(table).at[TOKENS].add(each)
    np.testing.assert_allclose(summed, jax.grad(of_table)(table), rtol=2e-5, atol=1e-6)


def test_a_prompt_of_vectors_goes_into_a_cache_and_is_decoded():
    config, params = make("rope")
    soft = jax.random.normal(jax.random.key(1), (2, 4, 8))
    first, step = jnp.array([3, 5]), jaxgen.model_step(params, config)
    cache = jaxgen.apply(
        params, config, inputs_embeds=soft, cache=jaxgen.empty_cache(config, 2, 16)
    ).cache
    made, _ = jaxgen.decode(step, cache, first, jax.random.key(0), jaxgen.greedy(), 6)
    rows = params["embed"]["tokens"]
    read = jnp.concatenate([first[:, None], made], axis=1)
    whole = jnp.concatenate([soft, rows[read]], axis=1)
    logits = jaxgen.apply(params, config, inputs_embeds=whole).logits
    np.testing.assert_array_equal(made, logits[:, 4:-1].argmax(axis=-1))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_state_of_another_text_makes_all_that_follows_that_of_the_other_text(wiring):
    """Activation patching: the residual stream after layer k decides every later one."""
    config, params = make(wiring)
    other, encoder = run(config, params, TOKENS + 1, taps=("*",)), None
    if config.topology == "encoder_decoder":
        there = jaxgen.encode(params, config, SOURCE, taps=("encoder/hidden",))
        states = there.taps["encoder/hidden"]
        encoder = {"encoder/hidden": lambda x, layer: states}

    plain = run(config, params)
    for path, state in other.taps.items():
        if not path.endswith("/out"):
            continue
        stacked, period = state if path.startswith("layers") else state[None], len(config.pattern)
        first = int(path.split("/")[1]) if path.startswith("layers/") and period > 1 else 0

        def patch(x, layer, stacked=stacked, first=first, period=period, path=path):
            index = 0 if path.startswith("rest") else (layer - first) // period
            return stacked[index]

        found = run(
            config,
            params,
            interventions={path: patch},
            taps=(path,),
            **({} if encoder is None else {"encoder": encoder, "source": SOURCE + 2}),
        )
        np.testing.assert_allclose(found.taps[path], state, rtol=1e-5, atol=1e-5)
        if config.layers % period == 0 or path.startswith("rest"):
            np.testing.assert_allclose(found.logits, other.logits, rtol=2e-4, atol=1e-4)
    assert not np.allclose(other.logits, plain.logits, atol=1e-3)


OUTPUTS = {"attn_out": "attn", "feed_out": "feed", "cross_out": "cross"}


def ablated(config, params, part, layer):
    """Return params whose part of one layer writes nothing: its last matrix and bias are zero."""
    flat = tree.flatten(params)
    names = {"attn": ("attn/o", "attn/o_bias"), "cross": ("cross/o", "cross/o_bias")}
    names["feed"] = ("feed/down", "feed/down_bias")
    paths = [path for path in flat if path.removeprefix("layers/") in names[part]]
    assert paths, sorted(flat)
    return tree.unflatten(flat | {path: flat[path].at[layer].set(0.0) for path in paths})


@lru_cache
def without(wiring, parts):
    """The logits of a model where each of (part, layer) writes nothing, and those of all of it."""
    config, params = make(wiring)
    plain = run(config, params).logits
    for part, layer in parts:
        params = ablated(config, params, part, layer)
    return run(config, params).logits, plain


@pytest.mark.parametrize("wiring", ["learned", "remat", "two towers"])
@pytest.mark.parametrize("lay", ["stacked", "unrolled", "cached", "unrolled and cached"])
def test_outputs_set_to_zero_are_layers_whose_weights_are_zero(wiring, lay):
    config, params = make(wiring)
    names = list(OUTPUTS)[: 3 if config.topology == "encoder_decoder" else 2]
    layers = {name: (1 + i) % config.layers for i, name in enumerate(names)}  # none twice
    wanted, plain = without(wiring, tuple((OUTPUTS[n], layer) for n, layer in layers.items()))

    def zero(x, layer, at):
        return jnp.where(layer == at, 0.0, x)

    changes = {f"layers/{name}": partial(zero, at=layer) for name, layer in layers.items()}
    options = {"interventions": changes}
    if "unrolled" in lay:
        params = params | {"layers": unroll(params["layers"])}
    if "cached" in lay:
        about = {"unrolled": serving.is_unrolled(params)}
        about |= {"memory": 3} if config.topology == "encoder_decoder" else {}
        cache = jaxgen.empty_cache(config, 2, 8, **about)
        memory = None
        if "memory" in about:
            memory = jaxgen.encode(params, config, SOURCE)
        whole = jaxgen.apply(params, config, TOKENS[:, :3], cache=cache, memory=memory, **options)
        rest = jaxgen.apply(params, config, TOKENS[:, 3:], cache=whole.cache, **options)
        found = jnp.concatenate([whole.logits, rest.logits], axis=1)
    else:
        found = run(config, params, **options).logits
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
    assert not np.allclose(found, plain, atol=1e-3)
    if lay == "stacked":  # each of them alone is another model
        for left in names:
            some = tuple((OUTPUTS[n], layers[n]) for n in names if n != left)
            assert not np.allclose(without(wiring, some)[0], wanted, atol=1e-3), left


@pytest.mark.parametrize("wiring", ["learned", "pattern", "remat"])
def test_interventions_are_differentiable_in_and_out_of_jit(wiring):
    config, params = make(wiring)

    def loss(vector):
        change = {"*/out": lambda x, layer: x + (layer + 1) * vector, "hidden": lambda x, _: 2 * x}
        return jnp.sin(jaxgen.apply(params, config, TOKENS, interventions=change).logits).sum()

    vector = jnp.linspace(-1, 1, 8)
    slope = jax.grad(loss)(vector)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(vector), slope, rtol=1e-4, atol=1e-5)
    way, small = jnp.cos(jnp.arange(8.0)), 1e-2
    numeric = (loss(vector + small * way) - loss(vector - small * way)) / (2 * small)
    np.testing.assert_allclose(slope @ way, numeric, rtol=2e-2)


def add(vector, x, layer):
    return x + vector


def test_arrays_of_an_intervention_are_arguments_of_a_program_that_is_compiled_once():
    config, params = make("learned")
    traced = []

    @partial(jax.jit, static_argnames="config")
    def steered(params, config, vector):
        traced.append(None)
        change = {"layers/out": Partial(add, vector)}
        return jaxgen.apply(params, config, TOKENS, interventions=change).logits

    program = jax.jit(jaxgen.apply, static_argnames="config")
    for scale in (0.0, 1.0, 2.0):
        vector = jnp.full(8, scale)
        found = steered(params, config, vector)
        given = program(params, config, TOKENS, interventions={"layers/out": Partial(add, vector)})
        np.testing.assert_allclose(found, given.logits, rtol=1e-5, atol=1e-6)
    assert len(traced) == 1
    np.testing.assert_allclose(
        steered(params, config, jnp.zeros(8)), run(config, params).logits, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interventions": {"layer/out": lambda x, i: x}}, r"\['layer/out'\] match nothing; there"),
        (
            {"interventions": {"*": lambda x, i: x, "hidden": lambda x, i: x}},
            r"\['\*', 'hidden'\] both match hidden; give one function",
        ),
        ({"interventions": {"hidden": lambda x, i: x[:1]}}, r"\['hidden'\] returns \[1, 5, 8\]"),
        ({"inputs_embeds": jnp.zeros((2, 5, 8))}, "give tokens .* or inputs_embeds"),
        ({"tokens": None}, "give tokens .* or inputs_embeds"),
        ({"tokens": None, "inputs_embeds": jnp.zeros((2, 5, 9))}, "but tokens have vectors of 8"),
        ({"tokens": None, "inputs_embeds": jnp.zeros((2, 99, 8))}, "99 tokens do not fit context"),
    ],
)
def test_what_can_not_be_changed_or_read_is_refused_by_name(options, message):
    config, params = make("learned")
    with pytest.raises(ConfigError, match=message):
        jaxgen.apply(params, config, **{"tokens": TOKENS} | options)

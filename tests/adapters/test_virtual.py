"""Virtual tokens before a text: as if they were there, in every way that a model is called."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import settings, tree
from jaxgen.adapters.adapter import abstract, attach, axes, init, merge, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.config_groups import LayerKind
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.nn import unroll
from jaxgen.ops.adapted import VirtualTokens

COUNT = 3
SIZES = {"vocab_size": 13, "context": 16, "layers": 2, "d_model": 8, "heads": 4, "init_std": 0.5}
ROPE = SIZES | {"kv_heads": 2, "norm": "rms", "positions": "rope", "feed": "swiglu"}
MODELS = {
    "learned": jaxgen.ModelConfig(**SIZES),
    "rope": jaxgen.ModelConfig(**ROPE),
    "alibi": jaxgen.ModelConfig(**SIZES, positions="alibi"),
    "window": jaxgen.ModelConfig(
        **ROPE | {"layers": 3}, window=4, pattern=("local", "global"),
        kinds={"local": LayerKind(reach="window"), "global": LayerKind(reach="all")},
    ),
}  # fmt: skip
TOKENS = np.asarray([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])


def made(kind, config, params, seed=0):
    """An adapter that begins with sampled tokens, its numbers moved."""
    asked = settings.build(AdapterSettings, {"kind": kind, "tokens": COUNT})
    adapter = plan(asked, config)
    own = init(adapter, config, params, jax.random.key(seed))
    shapes = tree.map_paths(lambda _, x: (x.shape, x.dtype), own)
    assert shapes == tree.map_paths(lambda _, x: (x.shape, x.dtype), abstract(adapter, config))
    letters = tree.flatten(axes(adapter, config))
    assert {path: len(x) for path, x in letters.items()} == {
        path: len(shape) for path, (shape, _) in tree.flatten(shapes).items()
    }
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype("float32"), own)
    return replace(adapter, params=moved)


def embedded(params, tokens, vectors):
    """The vectors of tokens behind others, in each row."""
    rows = np.broadcast_to(vectors, (len(tokens), *vectors.shape))
    return jnp.concatenate([rows, params["embed"]["tokens"][tokens]], axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_what_its_vectors_before_the_text_are(name):
    config = MODELS[name]
    params = random_params(config)
    adapter = made("prompt", config, params)
    tuned = attach(params, adapter, config)
    found = jaxgen.apply(tuned, config, TOKENS)
    ahead = embedded(params, TOKENS, adapter.params["prompt"])
    wanted = jaxgen.apply(params, config, inputs_embeds=ahead).logits[:, COUNT:]
    assert np.abs(wanted - jaxgen.apply(params, config, TOKENS).logits).max() > 0.1
    np.testing.assert_allclose(found.logits, wanted, atol=2e-5)


def test_packed_texts_read_each_its_own_and_a_cache_reads_them_in_pieces():
    config = MODELS["rope"]
    params = random_params(config)
    tuned = attach(params, made("prefix", config, params), config)
    alone = [jaxgen.apply(tuned, config, row[None, :3]).logits[0] for row in TOKENS]
    packed = np.concatenate([row[:3] for row in TOKENS])[None]
    found = jaxgen.apply(
        tuned, config, packed, segments=[[1, 1, 1, 2, 2, 2]], positions=[[0, 1, 2, 0, 1, 2]]
    )
    np.testing.assert_allclose(found.logits[0], np.concatenate(alone), atol=1e-5)
    cache = jaxgen.empty_cache(config, 2, 8)
    first = jaxgen.apply(tuned, config, TOKENS[:, :4], cache=cache)
    second = jaxgen.apply(tuned, config, TOKENS[:, 4:], cache=first.cache)
    whole = jaxgen.apply(tuned, config, TOKENS).logits
    pieces = np.concatenate([first.logits, second.logits], axis=1)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_a_prefix_begins_as_the_prompt_of_the_same_tokens_and_has_a_gradient():
    config = MODELS["learned"]
    params = random_params(config)
    batch = {"tokens": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}
    losses = []
    for kind in ("prompt", "prefix"):
        adapter = plan(settings.build(AdapterSettings, {"kind": kind, "tokens": COUNT}), config)
        own = init(adapter, config, params, jax.random.key(3))

        def loss(own, adapter=adapter):
            tuned = attach(params, replace(adapter, params=own), config)
            return jaxgen.causal_loss(tuned, config, batch).total

        value, grads = jax.jit(jax.value_and_grad(loss))(own)
        losses.append(float(value))
        assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(grads))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_texts_are_generated_behind_virtual_tokens_in_every_layout(monkeypatch):
    config = MODELS["rope"]
    params = random_params(config)
    adapter = made("prompt", config, params)
    tuned, key = attach(params, adapter, config), jax.random.key(0)
    found = jaxgen.generate(tuned, config, TOKENS[:, :2], key, length=4)
    text = TOKENS[:, :2]
    for _ in range(4):
        ahead = embedded(params, text, adapter.params["prompt"])
        last = jaxgen.apply(params, config, inputs_embeds=ahead).logits[:, -1]
        text = np.concatenate([text, np.argmax(last, axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(found, text[:, 2:])
    monkeypatch.setattr(unroll, "UNROLL_LIMITS", {"cpu": (0, 99)})
    laid = serving.ready(tuned, config)
    assert serving.is_unrolled(laid)
    again = jaxgen.generate(laid, config, TOKENS[:, :2], key, length=4)
    np.testing.assert_array_equal(again, found)


def test_an_encoder_reads_a_prompt_as_tokens():
    config = jaxgen.ModelConfig(**SIZES, topology="encoder", head="mlm")
    params = random_params(config)
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8)).astype("float32")
    tuned = params | {"prompt": VirtualTokens(jnp.asarray(vectors))}
    ahead = embedded(params, TOKENS, vectors)
    wanted = jaxgen.apply(params, config, inputs_embeds=ahead).logits[:, COUNT:]
    np.testing.assert_allclose(jaxgen.apply(tuned, config, TOKENS).logits, wanted, atol=1e-5)
    marks = np.asarray([[1, 1, 1, 1, 0, 0], [1] * 6])
    short = jaxgen.apply(tuned, config, TOKENS[:1, :4]).logits[0]
    found = jaxgen.apply(tuned, config, TOKENS, segments=marks).logits[0, :4]
    np.testing.assert_allclose(found, short, atol=1e-5)
    with pytest.raises(ConfigError, match="segments reach 2, but behind an encoder's virtual"):
        jaxgen.apply(tuned, config, TOKENS, segments=2 * marks)
    with pytest.raises(ConfigError, match="15 tokens behind the adapter's 3 do not fit the 16 lea"):
        jaxgen.apply(tuned, config, np.ones((1, 15), int))


def test_rows_of_an_encoder_read_a_prefix_each_for_itself():
    config = jaxgen.ModelConfig(**SIZES, topology="encoder", head="mlm")
    params = random_params(config)
    tuned = attach(params, made("prefix", config, params), config)
    alone = [jaxgen.apply(tuned, config, row[None, :3]).logits[0] for row in TOKENS]
    assert np.abs(alone[0] - jaxgen.apply(params, config, TOKENS[:1, :3]).logits[0]).max() > 0.1
    packed = np.concatenate([row[:3] for row in TOKENS])[None]
    found = jaxgen.apply(
        tuned, config, packed, segments=[[1, 1, 1, 2, 2, 2]], positions=[[0, 1, 2, 0, 1, 2]]
    )
    np.testing.assert_allclose(found.logits[0], np.concatenate(alone), atol=1e-5)


def test_a_prefix_of_two_towers_stands_in_the_decoder_alone():
    config = jaxgen.ModelConfig(**SIZES, topology="encoder_decoder", positions="relative")
    params = random_params(config)
    tuned = attach(params, made("prefix", config, params), config)
    memory = jaxgen.encode(tuned, config, TOKENS)
    own = jaxgen.encode(params, config, TOKENS)
    np.testing.assert_array_equal(memory.state, own.state)
    whole = jaxgen.apply(tuned, config, TOKENS, memory=memory).logits
    assert np.abs(whole - jaxgen.apply(params, config, TOKENS, memory=own).logits).max() > 0.1
    cache = jaxgen.empty_cache(config, 2, 8, memory=TOKENS.shape[1])
    first = jaxgen.apply(tuned, config, TOKENS[:, :4], cache=cache, memory=memory)
    second = jaxgen.apply(tuned, config, TOKENS[:, 4:], cache=first.cache)
    pieces = np.concatenate([first.logits, second.logits], axis=1)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_what_virtual_tokens_cannot_do_is_refused():
    config = MODELS["learned"]
    params = random_params(config)
    tuned = attach(params, made("prefix", config, params), config)
    with pytest.raises(ConfigError, match=r"14 tokens behind the adapter's 3 .*; give 13"):
        jaxgen.apply(tuned, config, np.ones((1, 14), int))
    with pytest.raises(ConfigError, match=r"positions.*13"):
        jaxgen.apply(tuned, config, [[1]], positions=[[13]])
    with pytest.raises(ConfigError, match="14 tokens behind the adapter's 3 do not fit"):
        jaxgen.apply(tuned, config, TOKENS, cache=jaxgen.empty_cache(config, 2, 14))
    with pytest.raises(ConfigError, match="are part of no weight and can't be merged"):
        merge(tuned, config)


# fmt: off
REFUSED = [
    ({"topology": "encoder", "head": "mlm"}, "prompt", "needs topology=decoder, not encoder"),
    ({"topology": "encoder", "head": "mlm", "positions": "disentangled"}, "prefix", "disentangled"),
    ({"layer_weights": "shared"}, "prompt", "kind=prompt: layers share weights"),
    ({"prompt": "both"}, "prefix", "prompt=both sees a prompt from both sides"),
]
KNOBS = [
    ({"kind": "prompt", "rank": 4}, "rank=4 has no effect with kind=prompt; leave it out"),
    ({"kind": "lora", "tokens": 4}, "tokens=4 has no effect with kind=lora; leave it out"),
    ({"kind": "ia3", "dropout": 0.1}, "dropout=0.1 has no effect with kind=ia3; leave it out"),
    ({"kind": "lora", "inputs": ["*/k"]}, "inputs=.* has no effect with kind=lora"),
    ({"kind": "prefix", "tokens": 0}, "tokens=0 must be at least 1"),
]
# fmt: on


@pytest.mark.parametrize(("more", "kind", "said"), REFUSED)
def test_a_model_without_a_place_for_them_is_named(more, kind, said):
    config = jaxgen.ModelConfig(**SIZES | more)
    with pytest.raises(ConfigError, match=said):
        plan(settings.build(AdapterSettings, {"kind": kind}), config)


@pytest.mark.parametrize(("given", "said"), KNOBS)
def test_a_knob_that_a_kind_does_not_have_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        settings.build(AdapterSettings, given)

"""Latent attention: its two forms are one, each where it multiplies less; large models fit it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tree
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.nn import latent as latents

SMALL = jaxgen.Latent(q_rank=6, kv_rank=8, rope_width=4, plain_width=6, value_width=5)
CONFIG = jaxgen.ModelConfig(
    vocab_size=31, context=32, layers=2, d_model=16, heads=4, norm="rms", positions="rope",
    biases="none", feed="swiglu", init_std=0.3, latent=SMALL,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 12))


def computed(monkeypatch, absorbed):
    """Return logits and gradients of a text in one form, through a cache in two pieces as well."""
    monkeypatch.setattr(latents, "is_absorbed", lambda *sizes: absorbed)
    params = random_params(CONFIG)

    def run(params):
        first = jaxgen.apply(params, CONFIG, TOKENS[:, :7], cache=api.empty_cache(CONFIG, 2, 12))
        rest = jaxgen.apply(params, CONFIG, TOKENS[:, 7:], cache=first.cache)
        whole = jaxgen.apply(params, CONFIG, TOKENS).logits
        pieces = jnp.concatenate([first.logits, rest.logits], axis=1)
        return jnp.sum(jnp.sin(whole)), (whole, pieces)

    (_, outs), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return outs, grads


def test_heads_that_meet_in_the_latents_compute_what_expanded_ones_do(monkeypatch):
    (whole, pieces), grads = computed(monkeypatch, absorbed=False)
    np.testing.assert_allclose(pieces, whole, atol=2e-5)
    found, same_grads = computed(monkeypatch, absorbed=True)
    for other in found:
        np.testing.assert_allclose(other, whole, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, same_grads)


def test_a_token_is_absorbed_and_a_long_prompt_expanded():
    large = jaxgen.Latent(q_rank=1536)  # of DeepSeek-V3
    assert latents.is_absorbed(large, 1, 4096) and latents.is_absorbed(large, 64, 4096)
    assert not latents.is_absorbed(large, 4096, 4096) and latents.is_absorbed(large, 1, 1)
    narrow = jaxgen.Latent(kv_rank=16)
    assert latents.is_absorbed(narrow, 4096, 4096)  # narrower than its heads


def test_a_large_model_has_its_published_shapes_and_a_narrow_cache():
    config = jaxgen.ModelConfig(
        vocab_size=129280, context=163840, layers=61, d_model=7168, heads=128, d_ff=18432,
        norm="rms", positions="rope", biases="none", feed="swiglu", output="untied",
        latent=jaxgen.Latent(q_rank=1536), param_dtype="bfloat16", compute_dtype="bfloat16",
    )  # fmt: skip
    shapes = jaxgen.abstract(config)
    attention = tree.count(shapes["layers"]["attn"]) / 61
    assert attention == 7168 * (1536 + 512 + 64) + 1536 + 512 + 1536 * 128 * 192 + 128 * (
        256 * 512 + 128 * 7168
    )
    cache = jax.eval_shape(lambda: api.empty_cache(config, 4, 4096))
    assert [leaf.shape[2:] for leaf in jax.tree.leaves(cache.full)] == [
        (1, 4096, 512),
        (1, 4096, 64),
    ]
    token = jax.ShapeDtypeStruct((4, 1), jnp.int32)
    out = jax.eval_shape(lambda p, t, c: jaxgen.apply(p, config, t, cache=c), shapes, token, cache)
    assert out.logits.shape == (4, 1, 129280)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_heads": 2}, "kv_heads=2 has no effect with latent"),
        ({"head_dim": 4}, "head_dim=4 has no effect with latent"),
        ({"qk_norm": "head"}, "qk_norm=head is not known with latent; give none"),
        ({"rope": jaxgen.Rope(share=0.5)}, "rope.share=0.5 is not known with latent"),
        ({"scores": jaxgen.Scores(by_layer="inverse")}, "scores.by_layer=inverse is not known"),
        ({"topology": "encoder_decoder"}, "no cross-attention is latent"),
        ({"latent": jaxgen.Latent(rope_width=3)}, "latent.rope_width=3 is odd"),
    ],
)
def test_settings_without_use_beside_latents_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        CONFIG.replace(**changes)
    with pytest.raises(ConfigError, match=r"latent\.kv_rank=0 must be greater than 0"):
        jaxgen.Latent(kv_rank=0)

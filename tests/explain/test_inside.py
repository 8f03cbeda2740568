"""Lenses, direct logits, patches: their ends are the model's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.explain.direct import direct_logits
from jaxgen.explain.lens import (
    fit_tuned_lens,
    layer_states,
    lens_logits,
    lens_loss,
    logit_lens,
)
from jaxgen.explain.patching import ablate, induction_scores, largest, patch

SIZES = {"vocab_size": 19, "context": 32, "layers": 3, "d_model": 8, "heads": 2, "init_std": 0.3}
WIRINGS = {
    "gpt2": {},
    "llama": {"norm": "rms", "positions": "rope", "feed": "swiglu", "pattern": ("local", "global"),
              "window": 3, "residual_scale": 0.7, "biases": "none", "logit_cap": 5.0},
    "two towers": {"topology": "encoder_decoder", "norm": "rms_offset"},
}  # fmt: skip
TEXT, OTHER = np.array([3, 1, 4, 1, 5, 9]), np.array([2, 7, 1, 8, 2, 8])
PLACES, TARGETS = np.array([2, 5]), np.array([7, 0])


def make(wiring):
    config = jaxgen.ModelConfig(**SIZES, **WIRINGS[wiring])
    params, memory = random_params(config), None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, [[5, 6, 7]])
    return config, params, memory


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_logit_is_the_sum_of_what_heads_and_layers_add(wiring):
    config, params, memory = make(wiring)
    logits = jaxgen.apply(params, config.replace(logit_cap=None), TEXT[None], memory=memory).logits
    parts = direct_logits(params, config, TEXT[None], PLACES, TARGETS, memory=memory)
    np.testing.assert_allclose(parts.logit, logits[0, PLACES, TARGETS], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts.total, parts.logit, atol=1e-4)
    assert parts.heads.shape == (3, 2, 2) and (parts.heads != 0).all()
    # Neurons make what their layer adds, but for its bias.
    bias = parts.feed - parts.neurons.sum(axis=-1)
    if not config.has_bias("feed"):
        np.testing.assert_allclose(bias, 0, atol=1e-5)
    layer, unit, amount = largest(parts.heads[:, 0], 1)[0]
    assert abs(amount) == jnp.abs(parts.heads[:, 0]).max() == jnp.abs(parts.heads[layer, 0, unit])


def test_a_head_adds_what_its_absence_takes_from_the_stream():
    config, params, _ = make("gpt2")
    parts = direct_logits(params, config, TEXT[None], PLACES, TARGETS)
    taps = jaxgen.apply(params, config, TEXT[None], taps=("layers/attn/heads", "layers/out")).taps
    o, state = params["layers"]["attn"]["o"], taps["layers/out"][-1, 0, PLACES]
    added = jnp.einsum("RH,HD->RD", taps["layers/attn/heads"][1, 0, PLACES, 1], o[1, 1])
    row = params["final_norm"]["scale"] * params["embed"]["tokens"][TARGETS]
    centred = row - row.mean(axis=-1, keepdims=True)
    wanted = (added * centred).sum(axis=-1) / state.std(axis=-1)
    np.testing.assert_allclose(parts.heads[1, :, 1], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wiring", ["gpt2", "llama"])
def test_the_last_lens_is_the_models_logits_bit_for_bit(wiring):
    config, params, _ = make(wiring)
    states = layer_states(params, config, TEXT[None])
    logits = jaxgen.apply(params, config, TEXT[None]).logits
    lenses = lens_logits(params, config, states)
    assert (lenses[-1] == logits).all() and len(lenses) == 4
    lens = logit_lens(params, config, TEXT[None], PLACES, TARGETS, top=3)
    logprobs = jax.nn.log_softmax(lenses[:, 0], axis=-1)[:, PLACES]
    target = logprobs[:, [0, 1], TARGETS]
    np.testing.assert_allclose(lens.target, target, rtol=1e-5, atol=1e-6)
    assert (lens.ids[..., 0] == logprobs.argmax(axis=-1)).all()
    rank = 1 + (logprobs > target[..., None]).sum(axis=-1)
    assert (lens.rank == rank).all()


def test_a_tuned_lens_is_nearer_to_the_model_and_leaves_the_last_layer():
    config, params, _ = make("gpt2")
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, 19, (8, 12)) for _ in range(40)]
    lens, losses = fit_tuned_lens(params, config, batches, learning_rate=1e-2)
    none = jax.tree.map(jnp.zeros_like, lens)
    held = jnp.asarray(draw.integers(0, 19, (8, 12)))
    assert losses[-1] < 0.8 * losses[0]
    assert lens_loss(params, config, held, lens) < 0.8 * lens_loss(params, config, held, none)
    states = layer_states(params, config, TEXT[None])
    plain, tuned = (lens_logits(params, config, states, one) for one in (None, lens))
    assert (tuned[-1] == plain[-1]).all() and (tuned[0] != plain[0]).any()
    seen = logit_lens(params, config, TEXT[None], PLACES, TARGETS, translators=lens)
    wanted = jax.nn.log_softmax(tuned[:, 0], axis=-1)[:, PLACES, TARGETS]
    np.testing.assert_allclose(seen.target, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="batches is empty"):
        fit_tuned_lens(params, config, [])


@pytest.mark.parametrize("wiring", ["gpt2", "llama"])
def test_a_patch_of_the_last_state_is_the_other_prompt_and_none_of_a_later_one(wiring):
    config, params, _ = make(wiring)
    ends = [
        jax.nn.log_softmax(jaxgen.apply(params, config, row[None]).logits[0, -1])[7]
        for row in (TEXT, OTHER)
    ]
    out = patch(params, config, TEXT, OTHER, 7)
    np.testing.assert_allclose([out.before, out.after], ends, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.share[-1], [0, 0, 0, 0, 0, 1], atol=1e-3)
    assert (jnp.abs(out.share[0, :-1]) > 1e-4).any()
    same = patch(params, config, TEXT, TEXT, 7)
    np.testing.assert_allclose(same.changed, out.before, rtol=1e-4, atol=1e-5)


def test_ablation_of_heads_is_a_model_whose_output_matrix_lacks_them():
    config, params, _ = make("gpt2")
    out = ablate(params, config, TEXT, 7)
    o = params["layers"]["attn"]["o"]
    for layer, head in ((0, 1), (2, 0)):
        own = {**params["layers"]["attn"], "o": o.at[layer, head].set(0)}
        cut = {**params, "layers": {**params["layers"], "attn": own}}
        wanted = jax.nn.log_softmax(jaxgen.apply(cut, config, TEXT[None]).logits[0, -1])[7]
        np.testing.assert_allclose(out.changed[layer, head], wanted, rtol=1e-4, atol=1e-5)
    own = {**params["layers"]["attn"], "o": 0 * o}
    cut = {**params, "layers": {**params["layers"], "attn": own}}
    wanted = jax.nn.log_softmax(jaxgen.apply(cut, config, TEXT[None]).logits[0, -1])[7]
    np.testing.assert_allclose(out.after, wanted, rtol=1e-4, atol=1e-5)
    mean = ablate(params, config, TEXT, 7, part="feed_out", by="position", instead="mean")
    assert mean.changed.shape == (3, 6) and not np.allclose(mean.after, out.after)


def test_induction_scores_are_what_heads_attend_to_after_the_first_time():
    config, params, _ = make("gpt2")
    key = jax.random.key(0)
    scores = induction_scores(params, config, key, length=8, batch=2)
    once = jax.random.randint(key, (2, 8), 0, 19)
    tokens = jnp.concatenate([once, once], axis=1)
    probs = jaxgen.apply(params, config, tokens, taps=("layers/attn/probs",)).taps
    probs = probs["layers/attn/probs"]
    wanted = np.mean([probs[:, :, :, 8 + i, i + 1] for i in range(7)], axis=(0, 2))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_what_can_not_be_looked_into_is_refused_by_name():
    config, params, _ = make("gpt2")
    post = config.replace(norm_at="post")
    for call, message in (
        (lambda: direct_logits({}, post, TEXT[None], PLACES, TARGETS), "norm_at=post"),
        (lambda: patch(params, config, TEXT, TEXT[:3], 1), "6 and 3 tokens"),
        (lambda: patch(params, config, TEXT, TEXT, 19), "target=19"),
        (lambda: patch(params, config, TEXT, TEXT, 1, by="head"), "by=head with part=out"),
        (lambda: ablate(params, config, TEXT[:0], 1), "empty"),
        (lambda: induction_scores(params, config, jax.random.key(0), length=17), "length=17"),
        (lambda: patch(params, config.replace(topology="encoder"), TEXT, TEXT, 1), "encoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()

"""Attribution: axioms on planted functions, completeness and causality on models."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.explain import attribution
from jaxgen.explain.scores import DRAWS, class_scores, no_text, token_scores
from jaxgen.models.api import hidden

SIZES = {"vocab_size": 19, "context": 16, "layers": 1, "d_model": 8, "heads": 2, "init_std": 0.3}
EMBEDS = jax.random.normal(jax.random.key(3), (5, 4))
METHODS = {
    "gradient_x_input": attribution.gradient_x_input,
    "integrated_gradients": attribution.integrated_gradients,
    "occlusion": attribution.occlusion,
    "shapley": attribution.shapley,
    "sampled_shapley": lambda *a, **k: attribution.sampled_shapley(*a, jax.random.key(0), **k),
}
WEIGHTS = jax.random.normal(jax.random.key(4), (2, 5, 4))


def linear(embeds):
    return jnp.einsum("BSD,RSD->BR", embeds, WEIGHTS)


def planted(embeds):
    """Vectors 0 and 1 take part alike, 3 and 4 not at all."""
    sums = embeds.sum(axis=-1)
    return jnp.stack([sums[:, 0] * sums[:, 1] + sums[:, 2] ** 3, jnp.sin(sums[:, 2])], axis=-1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exact_for_a_linear_score(method):
    base = jnp.ones(4)
    out = METHODS[method](linear, EMBEDS, baseline=base)
    wanted = jnp.einsum("SD,RSD->RS", EMBEDS - base, WEIGHTS)
    np.testing.assert_allclose(out.values, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.score, linear(EMBEDS[None])[0], rtol=1e-5, atol=1e-6)
    assert (out.gap < 1e-4).all()


@pytest.mark.parametrize("method", METHODS)
def test_vectors_without_effect_get_nothing_and_equal_ones_as_much(method):
    embeds = EMBEDS.at[1].set(EMBEDS[0])
    out = METHODS[method](planted, embeds)
    assert (out.values[:, 3:] == 0).all() and (out.values[1, :2] == 0).all()
    loose = {"rtol": 1e-4, "atol": 1e-5} if method != "sampled_shapley" else {"atol": 1e-4}
    np.testing.assert_allclose(out.values[0, 0], out.values[0, 1], **loose)
    if method in ("integrated_gradients", "shapley", "sampled_shapley"):
        np.testing.assert_allclose(out.values.sum(axis=1), out.score - out.baseline, rtol=1e-3)


def test_shapley_values_are_the_mean_over_all_orders():
    def score(embeds):
        sums = embeds.sum(axis=-1)
        return (
            jnp.tanh(sums[:, :1] * sums[:, 1:2]) + sums[:, 2:3] * sums[:, 3:4] * sums[:, 4:]
        ) ** 2

    base = jnp.full(4, 0.3)
    wanted, orders = np.zeros(5), list(permutations(range(5)))
    for order in orders:
        there = np.zeros(5, bool)
        before = float(score(jnp.where(there[:, None], EMBEDS, base)[None])[0, 0])
        for one in order:
            there[one] = True
            after = float(score(jnp.where(there[:, None], EMBEDS, base)[None])[0, 0])
            wanted[one] += (after - before) / len(orders)
            before = after
    exact = attribution.shapley(score, EMBEDS, baseline=base)
    np.testing.assert_allclose(exact.values[0], wanted, rtol=1e-4, atol=1e-5)
    inside = 0
    for seed in range(20):
        out = attribution.sampled_shapley(
            score, EMBEDS, jax.random.key(seed), baseline=base, pairs=16
        )
        np.testing.assert_allclose(out.values.sum(), out.score[0] - out.baseline[0], rtol=1e-4)
        inside += ((out.low[0] <= wanted + 1e-6) & (wanted - 1e-6 <= out.high[0])).sum()
    assert inside >= 85  # of 100; 95 are expected


def test_spans_are_taken_away_together_and_some_never():
    spans = (0, 0, 1, -1, 1)
    for method in ("occlusion", "shapley", "sampled_shapley"):
        out = METHODS[method](linear, EMBEDS, spans=spans)
        each = jnp.einsum("SD,RSD->RS", EMBEDS, WEIGHTS)
        wanted = jnp.stack([each[:, 0] + each[:, 1], each[:, 2] + each[:, 4]], axis=1)
        np.testing.assert_allclose(out.values, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.baseline, each[:, 3], rtol=1e-4, atol=1e-5)


def test_the_mean_of_several_baselines_sums_to_the_mean_difference():
    bases = jax.random.normal(jax.random.key(5), (3, 5, 4))
    each = [attribution.shapley(planted, EMBEDS, baseline=one) for one in bases]
    out = attribution.average(each)
    np.testing.assert_allclose(out.values, np.mean([one.values for one in each], axis=0), rtol=1e-5)
    np.testing.assert_allclose(out.baseline, planted(bases).mean(axis=0), rtol=1e-5)
    assert (out.gap < 1e-4).all() and out.steps == 32 and out.low is None


TEXT = [3, 1, 4, 1, 5, 9]


def question(kind):
    fields = {
        "decoder": {"positions": "rope", "norm": "rms", "feed": "swiglu", "logit_cap": 8.0},
        "encoder": {"topology": "encoder", "head": "mlm"},
        "two towers": {"topology": "encoder_decoder", "positions": "relative"},
        "classifier": {"topology": "encoder", "head": "classes", "classes": 3},
        "last token": {"head": "classes", "classes": 3},
        "two-tower classifier": {"topology": "encoder_decoder", "head": "classes", "classes": 3},
    }[kind]
    config = jaxgen.ModelConfig(**SIZES, **fields)
    params = random_params(config)
    if kind in ("classifier", "last token"):
        return (config, params, *class_scores(params, config, TEXT, [0, 2]))
    if kind == "two-tower classifier":
        return (config, params, *class_scores(params, config, TEXT, [0, 2], start=1))
    source = [2, 7, 1] if kind == "two towers" else None
    return (config, params, *token_scores(params, config, TEXT, [3, 5], source=source))


@pytest.mark.parametrize(
    "kind",
    ["decoder", "encoder", "two towers", "classifier", "last token", "two-tower classifier"],
)
def test_scores_are_the_models_own_and_gradients_explain_their_whole_difference(kind):
    config, params, score, embeds = question(kind)
    if "classifier" in kind or kind == "last token":
        memory, read = None, jnp.array([TEXT])
        if "two" in kind:
            memory = jaxgen.encode(params, config, read)
            read = jnp.array([[1, *TEXT[:-1]]])
        logits = jaxgen.apply(params, config, read, memory=memory).logits
        wanted = jax.nn.log_softmax(logits[0])[jnp.array([0, 2])]
    else:
        memory = jaxgen.encode(params, config, [[2, 7, 1]]) if kind == "two towers" else None
        logits = jaxgen.apply(params, config, [TEXT], memory=memory).logits
        before = kind != "encoder"
        wanted = [jax.nn.log_softmax(logits[0, p - before])[TEXT[p]] for p in (3, 5)]
    np.testing.assert_allclose(score(embeds[None])[0], wanted, rtol=1e-4, atol=1e-5)
    if kind not in ("decoder", "classifier"):
        return  # scores are all that differs
    out = attribution.integrated_gradients(score, embeds)
    np.testing.assert_allclose(out.score, wanted, rtol=1e-4, atol=1e-5)
    assert (out.gap < 1e-3).all(), out.gap
    if kind == "decoder":  # a token depends on none that comes after it
        assert (out.values[0, 3:] == 0).all() and (out.values[0, :3] != 0).all()
        assert (score.visible == (out.values != 0)).all()


@pytest.mark.parametrize("noise", [0.0, 3e-5])
def test_steps_are_where_the_score_bends_and_end_where_rounding_hides_the_rest(noise):
    def score(embeds):
        place = embeds.sum(axis=(1, 2))[:, None]  # 0 to 1 along the path
        rounding = noise * jnp.sin(1e7 * place)
        return jnp.tanh(400 * (place - 0.3)) + place + lax.stop_gradient(rounding)

    out = attribution.integrated_gradients(score, jnp.full((3, 2), 1 / 6))
    assert out.gap[0] < 1e-3 and 64 < out.steps < 1000, (out.gap, out.steps)
    np.testing.assert_allclose(out.values[0], 1.0, rtol=2e-3)


def test_no_text_is_random_tokens_or_vectors_that_are_alike_and_leave_no_place():
    config, params, _, _ = question("two towers")
    table = np.asarray(params["embed"]["tokens"])
    params["encoder"]["embed"] = {"tokens": 2 * params["embed"]["tokens"]}
    tokens = np.asarray(no_text(params, config, 6, num_source=2))
    assert tokens.shape == (DRAWS, 6, 8)
    near = np.abs(tokens[:, 2:, None] - table).max(axis=-1).min(axis=-1)
    near_source = np.abs(tokens[:, :2, None] - 2 * table).max(axis=-1).min(axis=-1)
    assert (near == 0).all() and (near_source == 0).all()
    assert len(np.unique(tokens.reshape(-1, 8), axis=0)) > 8
    mean = no_text(params, config, 6, num_source=2, baseline="mean")
    np.testing.assert_allclose(mean[0, :, 0] / table.mean(axis=0)[0], [2, 2, 1, 1, 1, 1], rtol=1e-4)
    assert (no_text(params, config, 6, baseline="zero") == np.zeros((1, 6, 8))).all()
    # Why tokens: a decoder computes the same at each of many vectors that are alike.
    config, params, _, _ = question("decoder")
    alike = no_text(params, config, 5, baseline="mean")
    features = hidden(params, config, inputs_embeds=alike).features[0]
    np.testing.assert_allclose(features, features[:1].repeat(5, axis=0), atol=1e-5)


def test_a_foil_is_subtracted_and_other_targets_can_be_asked_for():
    config, params, score, embeds = question("decoder")
    (own,) = score(embeds[None])
    ask = {"positions": [3, 5], "targets": [7, 8]}
    other, _ = token_scores(params, config, TEXT, **ask)
    both, _ = token_scores(params, config, TEXT, [3, 5], foils=[7, 8], measure="logit")
    np.testing.assert_allclose(
        both(embeds[None])[0], own - other(embeds[None])[0], rtol=1e-4, atol=1e-5
    )


def test_what_can_not_be_explained_is_refused_in_one_line():
    config, params, score, embeds = question("decoder")
    classes = question("classifier")[:2]
    for call, message in (
        (lambda: token_scores(params, config, []), "empty"),
        (lambda: token_scores(params, config, TEXT, [0]), r"positions=\[0\] must be from 1 to 5"),
        (lambda: token_scores(params, config, TEXT, [6]), r"positions=\[6\]"),
        (lambda: token_scores(params, config, TEXT, targets=[19]), r"targets=\[19\]"),
        (lambda: token_scores(params, config, TEXT, targets=[1, 2]), r"must be \[1\]"),
        (lambda: token_scores(params, config, TEXT, source=[1]), "source="),
        (lambda: token_scores(*classes[::-1], TEXT), "head=classes"),
        (lambda: class_scores(params, config, TEXT, [0]), "head=lm"),
        (lambda: class_scores(*classes[::-1], TEXT, [3]), r"classes=\[3\]"),
        (lambda: attribution.shapley(score, jnp.zeros((13, 8))), "13 spans"),
        (lambda: attribution.occlusion(score, embeds, spans=(0, 2, 2, 2, 2)), "without a gap"),
        (lambda: METHODS["integrated_gradients"](score, embeds, tolerance=0.0), "tolerance=0"),
        (lambda: METHODS["sampled_shapley"](score, embeds, pairs=2), "pairs=2"),
        (lambda: METHODS["occlusion"](score, embeds, baseline=jnp.zeros(3)), "baseline"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()

"""Adversarial training: never beyond epsilon, the clean gradient at 0, the same on any mesh."""

import re
from dataclasses import fields
from functools import partial
from pathlib import Path

import fake_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.ops.contract import lookup
from jaxgen.ops.perturbed import of_source
from jaxgen.run.settings import build_settings
from jaxgen.train.adversarial import describe, perturbed, smooth_loss
from jaxgen.train.settings import PERTURBING, AdversarialSettings

CONFIG = jaxgen.ModelConfig(vocab_size=16, context=8, layers=1, d_model=8, heads=2)
KEY = jax.random.key(1)
TOKENS = np.random.default_rng(0).integers(0, 16, (3, 6))
SEGMENTS = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
BATCH = {"tokens": jnp.asarray(TOKENS), "segments": jnp.asarray(SEGMENTS)}
PARAMS = {
    "embed": {"tokens": jax.random.normal(jax.random.key(2), (16, 8))},
    "out": jax.random.normal(jax.random.key(3), (8, 4)),
}


def loss_of(seen=None):
    """A loss that a user might write: a table, a sum, a curve; `seen` gets what was looked up."""

    def loss(params, config, batch, key):
        table = params["embed"]["tokens"]
        x = lookup(table, batch["tokens"], dtype="float32")
        if seen is not None:
            plain = jnp.take(PARAMS["embed"]["tokens"], batch["tokens"], axis=0)
            jax.debug.callback(lambda delta: seen.append(np.asarray(delta)), x - plain)
        logits = jnp.tanh(x.sum(1) / 4) @ params["out"]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])

    return loss


def gradient(loss, params=PARAMS, config=CONFIG, batch=BATCH):
    def mean(params):
        result = loss(params, config, batch, KEY)
        return result if isinstance(result, jax.Array) else result.total / result.weight

    return jax.jit(jax.value_and_grad(mean))(params)


@pytest.mark.parametrize("kind", PERTURBING)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_nothing_is_ever_perturbed_beyond_epsilon_and_padding_not_at_all(kind, norm):
    if norm == "linf" and kind == "neftune":
        return
    seen = []
    more = {"steps": 4} if kind in ("pgd", "freelb") else {}
    more |= {} if kind == "neftune" else {"norm": norm}
    own = AdversarialSettings(kind=kind, epsilon=0.5, **more)
    jax.block_until_ready(gradient(perturbed(loss_of(seen), own)))
    deltas = np.stack(seen)
    deltas = deltas.reshape(-1, *deltas.shape[-3:])
    if norm == "l2":
        sizes = np.sqrt((deltas.astype(np.float64) ** 2).sum((2, 3)))
    else:
        sizes = np.abs(deltas).max((2, 3))
    assert sizes.max() <= 0.5 + 2e-7  # x + d - x is rounded
    # Uniform noise has 1 / sqrt(3) of the length that it may have.
    assert sizes.max() > (0.25 if kind == "neftune" else 0.49)
    assert not deltas[:, 1, 4:].any() and deltas[:, 1, :4].any()


@pytest.mark.parametrize("kind", PERTURBING)
def test_as_epsilon_goes_to_zero_the_gradient_is_the_clean_one(kind):
    own = AdversarialSettings(kind=kind, epsilon=1e-7, **({"steps": 1} if kind == "pgd" else {}))
    (value, got), (clean, wanted) = gradient(perturbed(loss_of(), own)), gradient(loss_of())
    np.testing.assert_allclose(value, clean, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, wanted)


def test_the_mean_of_an_ascent_has_the_gradients_made_on_the_way():
    own = AdversarialSettings(kind="freelb", epsilon=0.5, steps=3, start=0.0)
    (_, mean), wanted = gradient(perturbed(loss_of(), own)), 0.0
    deltas, real = jnp.zeros((3, 6, 8)), (SEGMENTS > 0)[..., None]

    def at(table, deltas):
        x = jnp.take(table, BATCH["tokens"], axis=0) + deltas
        logits = jnp.tanh(x.sum(1) / 4) @ PARAMS["out"]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])

    for _ in range(3):
        grads, slope = jax.grad(at, (0, 1))(PARAMS["embed"]["tokens"], deltas)
        wanted = wanted + grads / 3
        slope = slope * real
        length = lambda x: jnp.sqrt((x**2).sum((1, 2), keepdims=True))  # noqa: E731
        deltas = deltas + slope / length(slope) * (2.5 * 0.5 / 3)
        deltas = deltas * jnp.minimum(1, 0.5 / length(deltas))
    np.testing.assert_allclose(mean["embed"]["tokens"], wanted, atol=1e-6)


def test_eight_devices_take_the_step_of_one():
    for form, apart, loss in fake_devices.run_checks(
        Path(__file__).with_name("adversarial_program.py"), 8
    ):
        assert apart < 2e-6 and loss < 2e-6, (form, apart, loss)


MODEL = jaxgen.init(CONFIG, jax.random.key(0))
TARGETS = {**BATCH, "targets": np.where(SEGMENTS > 0, (TOKENS + 1) % 16, -100)}


def changed(**given):
    """The gradient of the table with these settings of a kind, of a model for a divergence."""
    own = AdversarialSettings(**{"epsilon": 0.5} | given)
    if own.kind in PERTURBING:
        return np.asarray(gradient(perturbed(loss_of(), own))[1]["embed"]["tokens"])
    loss = partial(smooth_loss, settings=own)
    return np.asarray(gradient(loss, MODEL, CONFIG, TARGETS)[1]["embed"]["tokens"])


CHANGES = {
    "kind": {"kind": "fgm"},
    "epsilon": {"epsilon": 0.6},
    "norm": {"norm": "linf"},
    "steps": {"steps": 2},
    "step_size": {"step_size": 0.3},
    "start": {"start": 1.0},
    "weight": {"weight": 0.9},
}


@pytest.fixture(scope="module")
def plain():
    return changed(kind="pgd")


@pytest.mark.parametrize("name", [field.name for field in fields(AdversarialSettings)])
def test_each_setting_changes_the_gradient(plain, name):
    assert (changed(**{"kind": "pgd"} | CHANGES[name]) != plain).any()


@pytest.mark.parametrize("kind", ["vat", "smart"])
def test_a_divergence_adds_to_the_gradient(kind):
    _, clean = gradient(jaxgen.causal_loss, MODEL, CONFIG, TARGETS)
    smooth = changed(kind=kind, steps=1)
    assert np.abs(smooth - clean["embed"]["tokens"]).max() > 1e-4
    assert np.isfinite(smooth).all()


@pytest.mark.parametrize("tied", [True, False])
def test_what_an_encoder_reads_is_perturbed_by_noise_of_its_own(tied):
    table, inputs, deltas = PARAMS["embed"]["tokens"], {**BATCH, "source": BATCH["tokens"]}, {}
    params = PARAMS if tied else {**PARAMS, "encoder": {"embed": {"tokens": table}}}

    def loss(params, config, batch, key):
        own = params["embed"]["tokens"]
        source = of_source(own) if tied else params["encoder"]["embed"]["tokens"]
        for name, leaf in (("tokens", own), ("source", source)):
            plain = lookup(table, batch[name], dtype="float32")
            deltas[name] = lookup(leaf, batch[name], dtype="float32") - plain
        return jnp.float32(0)

    own = AdversarialSettings(kind="neftune", epsilon=0.5)
    perturbed(loss, own)(params, CONFIG.replace(topology="encoder_decoder"), inputs, KEY)
    sizes = {name: jnp.linalg.norm(x, axis=(1, 2)) for name, x in deltas.items()}
    assert all(((size > 0.15) & (size < 0.5)).all() for size in sizes.values())
    assert (jnp.abs(deltas["tokens"] - deltas["source"])[0] > 0).any()
    assert deltas["source"][1, 4:].any() and not deltas["tokens"][1, 4:].any()  # no marks: no pad


def test_the_vectors_of_a_model_beneath_an_adapter_are_perturbed():
    attach = lambda table, key: {**PARAMS, "embed": {"tokens": table}}  # noqa: E731
    own = AdversarialSettings(kind="fgm", epsilon=0.5)
    _, grads = gradient(perturbed(loss_of(), own, attach), PARAMS["embed"]["tokens"])
    np.testing.assert_allclose(grads, changed(kind="fgm"), atol=1e-7)


def test_two_draws_of_dropout_add_their_divergence_times_the_weight():
    config = CONFIG.replace(dropout=0.3)

    def both(params):
        return [
            smooth_loss(params, config, TARGETS, KEY, settings=settings)
            for settings in (AdversarialSettings(kind="rdrop", weight=w) for w in (1.0, 3.0))
        ]

    one, three = jax.jit(both)(MODEL)
    apart = one.metrics["divergence"]
    assert apart > 1e-6
    np.testing.assert_allclose(three.total - one.total, 2 * apart * one.weight, rtol=1e-2)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"epsilon": 0.1}, r"a text by up to 0.1 \(epsilon\).* mean length of 2.6$"),
        ({"epsilon": 9.0}, "mean length of 2.6, so that little may be learnt: try epsilon=1$"),
        ({"norm": "linf"}, r"a number by up to 1 \(epsilon\).* a mean largest of 1.4$"),
    ],
)
def test_epsilon_is_said_beside_the_vectors_that_it_moves(given, part):
    params = {"embed": {"tokens": jnp.tile(jnp.linspace(-1.4, 1.4, 8), (16, 1))}}
    line = describe(params, AdversarialSettings(kind="pgd", **given))
    assert re.search(part, line)
    if "try" in line:
        tried = AdversarialSettings(kind="pgd", epsilon=float(line.rpartition("=")[2]))
        assert "try" not in describe(params, tried)


def test_a_loss_that_reads_other_tokens_is_refused():
    own = AdversarialSettings(kind="fgm")

    def loss(params, config, batch, key):
        return lookup(params["embed"]["tokens"], batch["tokens"][:, :3], dtype="float32").sum()

    with pytest.raises(ConfigError, match=r"shape \[3, 3\], but batch\['tokens'\] has \[3, 6\]"):
        gradient(perturbed(loss, own))
    with pytest.raises(ConfigError, match="give it a key"):
        perturbed(loss_of(), own)(PARAMS, CONFIG, BATCH)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"kind": "fgm", "steps": 3}, "steps=3 has no effect with kind=fgm"),
        ({"epsilon": 1.0}, "epsilon=1.0 has no effect with kind=None"),
        ({"kind": "neftune", "norm": "linf"}, "norm=linf has no effect with kind=neftune"),
        ({"kind": "smart", "start": 0.0}, "start=0 leaves kind=smart where nothing grows"),
        ({"kind": "pgd", "weight": 1.5}, "weight=1.5 is a part of the loss: 1 at most"),
        ({"kind": "pgd", "epsilon": 0.0}, "epsilon=0.0 must be greater than 0"),
    ],
)
def test_settings_without_effect_are_refused(given, part):
    with pytest.raises(ConfigError, match=part):
        AdversarialSettings(**given)


@pytest.mark.parametrize(
    ("train", "more", "part"),
    [
        (
            {"kind": "pgd"},
            {"train": {"privacy": {"epsilon": 1, "delta": 1e-6}}},
            "is not for train.privacy",
        ),
        ({"kind": "pgd"}, {"objective": {"name": "policy"}}, "is not for objective.name=policy"),
        ({"kind": "rdrop"}, {}, "is not for model.dropout=0, which draws nothing"),
        ({"kind": "vat"}, {"train": {"loss_chunk": 4}}, "is not for train.loss_chunk"),
        ({"kind": "vat"}, {"objective": {"name": "preferences"}}, "name=preferences, which"),
        (
            {"kind": "pgd"},
            {"train": {"federated": {"clients": 2}}, "data": {"user": "file"}},
            "is not for train.federated",
        ),
    ],
)
def test_runs_that_cannot_be_adversarial_are_refused_by_name(train, more, part):
    given = dict(more)
    given["train"] = {"batch": 32, **more.get("train", {}), "adversarial": train}
    with pytest.raises(ConfigError, match=part):
        build_settings({"tokenizer": {"kind": "bytes"}, **given})

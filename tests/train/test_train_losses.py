"""The loss of a batch: what it reads, what it refuses, and how it is normalised."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import ConfigError, DataError
from jaxgen.train.losses import as_loss

CONFIG = jaxgen.ModelConfig(vocab_size=23, context=8, layers=1, d_model=16, heads=2, init_std=0.3)
IDS = np.random.default_rng(0).integers(0, 23, (3, 9)).astype("i4")
BATCH = {"tokens": IDS[:, :-1], "targets": IDS[:, 1:]}
WEIGHTS = np.random.default_rng(1).normal(size=(3, 8)).astype("f4")


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))


loss_of = jax.jit(jaxgen.causal_loss, static_argnums=1)


def nll_of(params, batch=BATCH):
    logp = jax.nn.log_softmax(jaxgen.apply(params, CONFIG, batch["tokens"]).logits)
    return -jnp.take_along_axis(logp, jnp.asarray(batch["targets"])[..., None], 2)[..., 0]


ROW_LOSSES = {
    "advantages": lambda rows: jnp.sum(jnp.array([1.0, -1.0, 2.0]) * rows),
    "preference": lambda rows: -jax.nn.log_sigmoid(0.1 * (rows[1] - rows[0])),
    "focal": lambda rows: jnp.sum((1 - jnp.exp(-rows / 8)) ** 2 * rows),
}


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_a_loss_of_rows_has_the_gradient_of_the_plain_one(params, name):
    ours = jax.grad(lambda p: ROW_LOSSES[name](jaxgen.causal_loss(p, CONFIG, BATCH).nll))
    plain = jax.grad(lambda p: ROW_LOSSES[name](nll_of(p).sum(axis=1)))
    found, wanted = jax.jit(ours)(params), jax.jit(plain)(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


def test_weights_have_either_sign_and_a_gradient(params):
    def ours(params, weights):
        return jaxgen.causal_loss(params, CONFIG, BATCH | {"weights": weights}).total

    def plain(params, weights):
        return jnp.sum(weights * nll_of(params))

    found, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(params, jnp.asarray(WEIGHTS)) for f in (ours, plain)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)
    found = loss_of(params, CONFIG, BATCH | {"weights": WEIGHTS})
    np.testing.assert_allclose(found.weight, np.abs(WEIGHTS).sum(), rtol=1e-6)
    np.testing.assert_allclose(found.nll, (WEIGHTS * nll_of(params)).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("mark", [-100, -1])
def test_marked_targets_count_for_nothing(params, mark):
    inside = np.arange(8) < np.array([[8], [5], [0]])
    found = loss_of(params, CONFIG, BATCH | {"targets": np.where(inside, BATCH["targets"], mark)})
    wanted = loss_of(params, CONFIG, BATCH | {"weights": inside})
    assert float(found.weight) == 13
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, wanted)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weigths": WEIGHTS}, ConfigError, "'weigths' (did you mean 'weights'?)"),
        ({"labels": IDS}, ConfigError, "'labels' (did you mean 'targets'?"),
        ({"source": IDS}, ConfigError, "topology=decoder reads no source"),
        ({"targets": None}, ConfigError, "batch has no 'targets', only tokens"),
        ({"tokens": None}, ConfigError, "batch has no 'tokens'"),
        ({"targets": IDS}, ConfigError, "batch['targets'] is [3, 9]; it wants [3, 8]"),
        ({"weights": WEIGHTS[:, :1]}, ConfigError, "batch['weights'] is [3, 1]; it wants [3, 8]"),
        ({"tokens": IDS[0]}, ConfigError, "batch['tokens'] is [9]; it wants two axes"),
        ({"segments": WEIGHTS}, ConfigError, "batch['segments'] holds float32; it wants integers"),
        (
            {"targets": BATCH["targets"] - 23},
            DataError,
            "is not in the vocabulary: ids are 0 to 22",
        ),
        ({"tokens": BATCH["tokens"] + 23}, DataError, "batch['tokens'][0, 0]="),
    ],
)
def test_a_batch_that_says_something_else_is_refused(params, change, error, words):
    batch = {name: x for name, x in (BATCH | change).items() if x is not None}
    with pytest.raises(error) as caught:
        jaxgen.causal_loss(params, CONFIG, batch)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"smoothing": 1.0}, {"z": -1.0}, {"chunk": 0}])
def test_options_out_of_range_are_refused(params, options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        jaxgen.causal_loss(params, CONFIG, BATCH, **options)


def test_lists_are_a_batch(params):
    found = loss_of(params, CONFIG, {n: jnp.asarray(x.tolist()) for n, x in BATCH.items()})
    listed = jaxgen.causal_loss(params, CONFIG, {n: x.tolist() for n, x in BATCH.items()})
    np.testing.assert_allclose(listed.total, found.total, rtol=1e-6)


@pytest.mark.parametrize(
    "result",
    [
        None,
        "0.5",
        3,
        jnp.ones(2),
        jnp.int32(1),
        (jnp.float32(1.0),),
        (jnp.float32(1.0), [2.0]),
        (jnp.float32(1.0), {"mean": "1"}),
        (jnp.float32(1.0), {}, {}),
        jaxgen.Loss(jnp.ones(2), jnp.float32(1), jnp.ones(3)),
        jaxgen.Loss(jnp.float32(1), jnp.float32(1), jnp.ones((3, 8))),
    ],
)
def test_what_is_no_loss_is_named(result):
    with pytest.raises(ConfigError, match=r"loss returned|Loss\.") as caught:
        as_loss(result, BATCH)
    assert "\n" not in str(caught.value)


def test_under_jit_a_target_outside_the_vocabulary_is_loud_and_an_ignored_one_is_not(params):
    def gradient(targets, **more):
        batch = {**BATCH, "targets": targets, **more}
        grads = jax.jit(jax.grad(lambda p, b: jaxgen.causal_loss(p, CONFIG, b).total))(
            params, batch
        )
        return bool(
            jnp.isfinite(jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])).all()
        )

    targets = BATCH["targets"].copy()
    targets[1, 3] = 999
    assert not gradient(targets) and not gradient(np.where(targets == 999, -7, targets))
    weights = np.where(targets == 999, 0.0, 1.0)
    assert gradient(targets, weights=weights)  # padding of any value
    assert gradient(np.where(targets == 999, -100, targets))

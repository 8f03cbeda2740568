"""A step is pure, counts tokens not rows, and never smooths a bad number away."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxgen
from jaxgen import tree
from jaxgen.errors import ConfigError
from jaxgen.train import nonfinite, optimizer
from jaxgen.train import state as states
from jaxgen.train.accumulate import gradients
from jaxgen.train.settings import TrainSettings

CONFIG = jaxgen.ModelConfig(vocab_size=23, context=12, layers=2, d_model=16, heads=2, init_std=0.2)
# Of few arrays, for optimizers that are long to compile: a search along a line holds many losses.
BARE = CONFIG.replace(layers=1, norm="rms", biases="none", positions="none")
B, T = 8, 12


def batch(seed=0):
    rng = np.random.default_rng(seed)
    # Rows of very different weight: an average of averages would be wrong.
    weights = (np.arange(T)[None] < np.array([1, 12, 3, 12, 7, 2, 12, 5])[:, None]).astype("f4")
    tokens = rng.integers(0, 23, (B, T + 1)).astype("i4")
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def bare_params():
    return jax.jit(jaxgen.init, static_argnums=0)(BARE, jax.random.key(0))


def stepper(tx, config=CONFIG, **options):
    return jax.jit(
        partial(jaxgen.train_step, config=config, optimizer=tx, loss=jaxgen.causal_loss, **options)
    )


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_matches_the_large_batch(params, accumulate):
    take = jax.jit(partial(gradients, jaxgen.causal_loss), static_argnames=("config", "accumulate"))
    key = jax.random.key(0)
    whole, wanted = take(params, CONFIG, batch(), key, accumulate=1)
    parts, found = take(params, CONFIG, batch(), key, accumulate=accumulate)
    np.testing.assert_allclose(parts.total, whole.total, rtol=1e-6)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5, atol=1e-5)
    assert float(parts.weight) == float(whole.weight) == batch()["weights"].sum()
    for path, grad in tree.flatten(wanted).items():
        error = jnp.linalg.norm(tree.flatten(found)[path] - grad)
        assert error <= 2e-6 * jnp.linalg.norm(grad) + 1e-7, path


def test_dropout_draws_anew_for_each_microbatch_and_step(params):
    config = CONFIG.replace(dropout=0.5)
    rows = jax.tree.map(lambda x: np.repeat(x[:1], 4, 0), batch())
    loss, _ = gradients(jaxgen.causal_loss, params, config, rows, jax.random.key(0), accumulate=4)
    assert len(set(loss.nll.tolist())) == 4
    state = states.train_state(params, optax.set_to_zero(), jax.random.key(1))
    step = jax.jit(
        partial(
            jaxgen.train_step,
            config=config,
            optimizer=optax.set_to_zero(),
            loss=jaxgen.causal_loss,
        )
    )
    state, first = step(state, rows)
    _, second = step(state, rows)
    assert float(first["loss"]) != float(second["loss"])


def test_packed_loss_and_gradients_match_unpacked(params):
    rng = np.random.default_rng(1)
    one, two = rng.integers(0, 23, (1, 8)), rng.integers(0, 23, (1, 6))
    take = jax.jit(partial(gradients, jaxgen.causal_loss, params, CONFIG, accumulate=1))
    key = jax.random.key(0)

    def padded(row):
        length = row.shape[1] - 1
        pad = ((0, 0), (0, T - length))
        return {
            "tokens": np.pad(row[:, :-1], pad),
            "targets": np.pad(row[:, 1:], pad),
            "weights": np.pad(np.ones((1, length), "f4"), pad),
        }

    alone = [padded(row) for row in (one, two)]
    apart = jax.tree.map(lambda a, b: np.concatenate([a, b]), *alone)
    joined = {
        "tokens": np.concatenate([one[:, :-1], two[:, :-1]], 1),
        "targets": np.concatenate([one[:, 1:], two[:, 1:]], 1),
        "weights": np.ones((1, 12), "f4"),
        "segments": np.array([[1] * 7 + [2] * 5]),
        "positions": np.array([[*range(7), *range(5)]]),
    }
    unpacked, packed = take(apart, key), take(joined, key)
    np.testing.assert_allclose(packed[0].total, unpacked[0].total, rtol=1e-6)
    for path, grad in tree.flatten(unpacked[1]).items():
        np.testing.assert_allclose(tree.flatten(packed[1])[path], grad, atol=1e-6, err_msg=path)


def test_a_step_lowers_the_loss_and_leaves_its_arguments_alone(params):
    tx = optax.adam(1e-2)
    state = states.train_state(params, tx, jax.random.key(0))
    step, losses = stepper(tx), []
    now = state
    for _ in range(30):
        now, metrics = step(now, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    again, metrics = step(state, batch())
    assert float(metrics["loss"]) == losses[0]
    assert int(again.step) == 1 and int(state.step) == 0


def test_a_donated_state_is_consumed(params):
    tx = optimizer.make(TrainSettings(), jaxgen.axes(CONFIG))
    copy = jax.tree.map(jnp.copy, params)
    state = states.train_state(copy, tx, jax.random.key(0))
    step = partial(jaxgen.train_step, config=CONFIG, optimizer=tx, loss=jaxgen.causal_loss)
    jax.jit(step, donate_argnums=0)(state, batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


OPTIONS = {"config": CONFIG, "loss": jaxgen.causal_loss, "accumulate": 1}


def poisoned(params):
    flat = tree.flatten(params)
    return tree.unflatten(
        flat | {"layers/feed/up": flat["layers/feed/up"].at[1, 0, 0].set(jnp.nan)}
    )


def test_a_bad_step_changes_nothing_and_is_counted(params):
    tx = optax.adam(1e-2)
    step = stepper(tx, patience=5)
    state, _ = step(states.train_state(params, tx, jax.random.key(0)), batch())
    bad = batch() | {"weights": np.full((B, T), np.inf, "f4")}
    after, metrics = step(state, bad)
    assert not np.isfinite(metrics["objective"])
    assert (int(metrics["skipped"]), int(metrics["streak"])) == (1, 1)
    assert nonfinite.CAUSES[int(metrics["cause"])] == "the loss is not finite"
    for old, new in zip(
        jax.tree.leaves((state.params, state.optimizer)),
        jax.tree.leaves((after.params, after.optimizer)),
        strict=True,
    ):
        assert (old == new).all()
    well, metrics = step(after, batch())
    assert (int(metrics["skipped"]), int(metrics["streak"]), int(metrics["cause"])) == (1, 0, 0)
    assert (well.params["layers"]["attn"]["q"] != after.params["layers"]["attn"]["q"]).any()


def test_after_the_last_bad_step_nothing_moves_any_more(params):
    tx = optax.adam(1e-2)
    step = stepper(tx, patience=2)
    state = states.train_state(params, tx, jax.random.key(0))
    bad = batch() | {"weights": np.full((B, T), np.inf, "f4")}
    for _ in range(2):
        state, metrics = step(state, bad)
    assert int(metrics["streak"]) == 2
    frozen, metrics = step(state, batch())
    assert int(metrics["streak"]) == 3
    assert nonfinite.CAUSES[int(metrics["cause"])] == "too many bad steps in a row"
    assert (frozen.params["layers"]["attn"]["q"] == state.params["layers"]["attn"]["q"]).all()


@pytest.mark.parametrize(
    ("loss", "norm", "update", "cause"),
    [
        (2.0, 1.0, 1.0, ""),
        (np.nan, np.inf, np.nan, "the loss is not finite"),
        (2.0, np.inf, np.nan, "the gradient is not finite"),
        (2.0, 1.0, np.nan, "the update is not finite"),
        (9.0, 1.0, 1.0, "the loss is a spike"),
    ],
)
def test_a_refused_step_has_the_first_of_its_causes(loss, norm, update, cause):
    seen = jnp.int32(nonfinite.SETTLED)
    health = states.Health(jnp.float32(2.0), seen, jnp.int32(0), jnp.int32(0))
    limits = {"spike": 4.0, "patience": 3, "update": jnp.full(2, update)}
    good, found, after = nonfinite.check(health, jnp.float32(loss), jnp.float32(norm), **limits)
    assert nonfinite.CAUSES[int(found)] == cause
    assert bool(good) == (cause == "") and int(after.skipped) == (cause != "")


def unchanged(before, after):
    """Whether parameters and optimizer are the same bits."""
    old, new = (jax.tree.leaves((state.params, state.optimizer)) for state in (before, after))
    return all((a == b).all() for a, b in zip(old, new, strict=True))


def spoiled(value, path="layers/feed/up"):
    """An optimizer whose second update holds one number that is not finite."""

    def update(grads, count, params=None):
        flat = tree.flatten(jax.tree.map(lambda g: -0.1 * g, grads))
        flat[path] = jnp.where(count == 1, flat[path].at[0, 0, 0].set(value), flat[path])
        return tree.unflatten(flat), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def multiplied(grads):
    one = (jnp.eye(2) @ jnp.ones((2, 2)))[0, 0]
    return jax.tree.map(lambda g: g * one, grads)


UPDATES = {
    "a number": spoiled(jnp.nan),
    "an infinity": spoiled(jnp.inf),
    "a learning rate": optax.sgd(lambda step: jnp.where(step == 1, jnp.nan, 0.1)),
    "after a matrix product": optax.chain(
        optax.stateless(lambda g, _: multiplied(g)), spoiled(-jnp.inf)
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_that_is_not_finite_is_not_taken(params, name):
    step = stepper(UPDATES[name], patience=2)
    state, _ = step(states.train_state(params, UPDATES[name], jax.random.key(0)), batch())
    after, metrics = step(state, batch())
    assert (int(metrics["skipped"]), int(metrics["streak"])) == (1, 1)
    assert np.isfinite(metrics["objective"]) and np.isfinite(metrics["grad_norm"])
    assert nonfinite.CAUSES[int(metrics["cause"])] == "the update is not finite"
    assert unchanged(state, after)
    found = nonfinite.locate(after, batch(), 2, **OPTIONS, optimizer=UPDATES[name])
    assert "the optimizer's update of " in str(nonfinite.report(found, 2, 2, [], "none"))


def test_weights_that_sum_to_less_than_one_do_not_scale_the_loss(params):
    small = batch() | {"weights": 1e-4 * batch()["weights"]}
    take = jax.jit(partial(gradients, jaxgen.causal_loss, params, CONFIG, accumulate=2))
    (loss, grads), (right, wanted) = (take(b, jax.random.key(0)) for b in (small, batch()))
    np.testing.assert_allclose(loss.total / loss.weight, right.total / right.weight, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), grads, wanted)


LOSSES = {
    "a Loss": jaxgen.causal_loss,
    "a scalar": lambda *given: mean_of(jaxgen.causal_loss(*given)),
    "a Loss and values": lambda *given: with_values(jaxgen.causal_loss(*given)),
    "a scalar and values": lambda *given: (mean_of(jaxgen.causal_loss(*given)), {"kept": 0.5}),
    "a Loss with values": lambda *given: jaxgen.causal_loss(*given)._replace(
        metrics={"mean": jnp.float32(2.0)}
    ),
}


def mean_of(loss):
    return loss.total / loss.weight


def with_values(loss):
    return loss, {"mean": mean_of(loss), "pair": jnp.stack([mean_of(loss), loss.weight])}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_may_be_of_several_forms(params, name, accumulate):
    tx, even = optax.sgd(0.1), {n: x for n, x in batch().items() if n != "weights"}
    found, wanted = (
        jax.jit(
            partial(
                jaxgen.train_step, config=CONFIG, optimizer=tx, loss=loss, accumulate=accumulate
            )
        )(states.train_state(params, tx, jax.random.key(0)), even)
        for loss in (LOSSES[name], jaxgen.causal_loss)
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found[0].params, wanted[0].params)
    close(found[1]["objective"], wanted[1]["objective"])
    if name == "a Loss and values":
        close(found[1]["mean"], wanted[1]["objective"])
        close(found[1]["pair"], [wanted[1]["objective"], B * T / accumulate])
    if name == "a scalar and values":
        assert float(found[1]["kept"]) == 0.5 and float(found[1]["tokens"]) == B


def test_a_metric_that_a_step_has_itself_is_refused(params):
    tx, loss = optax.sgd(0.1), lambda *given: (jaxgen.causal_loss(*given), {"loss": 1.0})
    state = states.train_state(params, tx, jax.random.key(0))
    with pytest.raises(ConfigError, match="metric 'loss'"):
        jaxgen.train_step(state, batch(), config=CONFIG, optimizer=tx, loss=loss)


def test_rows_that_cannot_be_dealt_out_are_named_and_numbers_go_to_every_microbatch(params):
    tx = optax.sgd(0.1)
    state = states.train_state(params, tx, jax.random.key(0))
    options = {"config": CONFIG, "optimizer": tx}
    with pytest.raises(ConfigError, match="accumulate=3 does not divide the 8 rows"):
        jaxgen.train_step(state, batch(), loss=jaxgen.causal_loss, accumulate=3, **options)
    with pytest.raises(ConfigError, match="8 and 9 rows"):
        uneven = {"one": np.ones(8), "two": np.ones(9)}
        jaxgen.train_step(state, uneven, loss=jaxgen.causal_loss, accumulate=2, **options)

    def scaled(params, config, rows, key):
        rows = dict(rows)
        return rows.pop("beta") * mean_of(jaxgen.causal_loss(params, config, rows, key))

    _, metrics = jaxgen.train_step(
        state, batch() | {"beta": 0.5}, loss=scaled, accumulate=2, **options
    )
    assert np.isfinite(metrics["objective"])


READERS = {
    "value": optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau()),
    "value and gradient": optax.polyak_sgd(),
    # Its first step is far too long. LBFGS, twice as long to compile, has the next test.
    "a search along a line": optax.chain(
        optax.sgd(20.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=30)
    ),
    "schedule free": contrib.schedule_free_adamw(1e-1, warmup_steps=1),
}


@pytest.mark.parametrize("name", READERS)
def test_optimizers_that_read_the_loss_lower_it(bare_params, name):
    step = stepper(READERS[name], BARE, accumulate=2)
    state, losses = states.train_state(bare_params, READERS[name], jax.random.key(0)), []
    for _ in range(6):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.2 and int(metrics["skipped"]) == 0
    checked = jax.jit(jaxgen.causal_loss, static_argnums=1)(
        states.evaluation_params(state), BARE, batch()
    )
    assert float(mean_of(checked)) < losses[0] - 0.2
    same = states.evaluation_params(state) is state.params
    assert same == (name != "schedule free")


def test_lbfgs_steps_as_optax_alone_does(bare_params):
    tx, key = optax.lbfgs(), jax.random.key(0)

    @jax.jit
    def alone(params, held):
        value = lambda p: mean_of(jaxgen.causal_loss(p, BARE, batch()))  # noqa: E731
        loss, grad = jax.value_and_grad(value)(params)
        updates, held = tx.update(grad, held, params, value=loss, grad=grad, value_fn=value)
        return optax.apply_updates(params, updates), held

    step, state, wanted, held = (
        stepper(tx, BARE),
        states.train_state(bare_params, tx, key),
        bare_params,
        tx.init(bare_params),
    )
    for _ in range(2):
        state, _ = step(state, batch())
        wanted, held = alone(wanted, held)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), state.params, wanted)


DTYPES = ("float32", "bfloat16", "float16")


def losses_of(kept, compute):
    """The losses of a few steps in these dtypes, and the state after them."""
    config = CONFIG.replace(param_dtype=kept, compute_dtype=compute)
    tx = optimizer.make(TrainSettings(warmup=0, learning_rate=3e-3), jaxgen.axes(config))
    params = jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda p: p.astype(kept), params)
    state, found = states.train_state(params, tx, jax.random.key(0)), []
    step = partial(jaxgen.train_step, config=config, optimizer=tx, loss=jaxgen.causal_loss)
    step = jax.jit(step, donate_argnums=0)
    for _ in range(10):
        state, metrics = step(state, batch())
        found.append(float(metrics["loss"]))
    assert int(metrics["skipped"]) == 0
    return np.array(found), state


@pytest.fixture(scope="module")
def in_float32():
    return losses_of("float32", "float32")[0]


@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize("kept", DTYPES)
def test_every_pair_of_dtypes_learns_as_float32_does(kept, compute, in_float32):
    found, state = losses_of(kept, compute)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {kept}
    assert in_float32[-1] < in_float32[0] - 0.2
    rough = 0.05 if "bfloat16" in (kept, compute) else 0.005
    np.testing.assert_allclose(found, in_float32, atol=rough)


@pytest.mark.parametrize("freeze", [(), ("embed/*",)])
def test_narrow_parameters_take_steps_smaller_than_their_last_bit(freeze):
    config = CONFIG.replace(param_dtype="bfloat16")
    settings = TrainSettings(
        warmup=0, learning_rate=1e-4, schedule="constant", weight_decay=0.0, freeze=freeze
    )
    tx = optimizer.make(settings, jaxgen.axes(config))
    before = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    state = states.train_state(before, tx, jax.random.key(0))
    step = partial(jaxgen.train_step, config=config, optimizer=tx, loss=jaxgen.causal_loss)
    step = jax.jit(step)
    for _ in range(40):  # of 1e-4 each, where the last bit of 1.0 is 2^-8
        state, _ = step(state, batch())
    scale = np.float32(state.params["final_norm"]["scale"])
    assert (scale != 1.0).mean() > 0.5 and np.abs(scale - 1).max() < 0.01
    same = (state.params["embed"]["tokens"] == before["embed"]["tokens"]).all()
    assert bool(same) == bool(freeze)
    masters = [x for x in jax.tree.leaves(state.optimizer) if x.shape == (23, 16)]
    assert len(masters) == (0 if freeze else 3)  # a float32 copy and two moments


def test_an_update_that_float16_cannot_hold_is_not_taken():
    config = CONFIG.replace(param_dtype="float16")
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    tx = optax.stateless(lambda grads, _: jax.tree.map(lambda g: jnp.full_like(g, 7e4), grads))
    state = states.train_state(params, tx, jax.random.key(0))
    step = partial(jaxgen.train_step, config=config, optimizer=tx, loss=jaxgen.causal_loss)
    after, metrics = jax.jit(step)(state, batch())
    assert int(metrics["skipped"]) == 1 and unchanged(state, after)
    found = nonfinite.locate(
        after, batch(), 1, config=config, loss=jaxgen.causal_loss, accumulate=1, optimizer=tx
    )
    assert "float16 ends at 65504" in str(nonfinite.report(found, 1, 1, [], "none"))


def with_params(state, params):
    return dataclasses.replace(state, params=params)


def test_a_spike_is_skipped_once_the_loss_has_settled(params):
    tx = optax.set_to_zero()
    step = stepper(tx, spike=2.0, patience=5)
    state = states.train_state(params, tx, jax.random.key(0))
    spiked = jax.tree.map(lambda x: x * 30, params)
    wild = jax.jit(jaxgen.causal_loss, static_argnums=1)(spiked, CONFIG, batch())
    assert float(wild.total / wild.weight) > 10
    for _ in range(49):
        state, metrics = step(state, batch())
    _, metrics = step(with_params(state, spiked), batch())
    assert int(metrics["skipped"]) == 0
    state, metrics = step(state, batch())
    late, metrics = step(with_params(state, spiked), batch())
    assert int(metrics["skipped"]) == 1 and np.isfinite(metrics["loss"])
    assert float(late.health.mean) == float(state.health.mean)


def test_the_post_mortem_names_parameter_and_examples(params):
    state = states.train_state(poisoned(params), optax.set_to_zero(), jax.random.key(0))
    options = {**OPTIONS, "optimizer": optax.set_to_zero()}
    found = nonfinite.locate(state, batch(), 1, **options)
    assert found["params"] == ["layers/feed/up"]
    assert found["rows"] == list(range(B))
    error = nonfinite.report(found, 7, 3, ["row 0"], "checkpoint 5 stays")
    assert error.exit_code == 6
    assert "step 7" in str(error) and "parameter layers/feed/up is not finite" in str(error)
    assert "checkpoint 5 stays" in str(error) and "\n" not in str(error)


def test_the_post_mortem_of_a_bad_example_names_its_row(params):
    state = states.train_state(params, optax.set_to_zero(), jax.random.key(0))
    weights = batch()["weights"].copy()
    weights[3, 2] = np.inf
    options = {**OPTIONS, "optimizer": optax.set_to_zero()}
    found = nonfinite.locate(state, batch() | {"weights": weights}, 1, **options)
    assert found["rows"] == [3] and found["params"] == []
    assert "the gradient of" in str(nonfinite.report(found, 1, 3, [], "none"))


def test_the_state_of_another_optimizer_is_named():
    params = {"w": jnp.ones(3)}
    state = states.train_state(params, optax.adamw(0.1), jax.random.key(0))
    loss = lambda params, config, batch, key: jnp.sum(params["w"] ** 2)  # noqa: E731
    with pytest.raises(ConfigError, match="is of another optimizer than"):
        jaxgen.train_step(state, {}, config=CONFIG, optimizer=optax.sgd(0.1, 0.9), loss=loss)

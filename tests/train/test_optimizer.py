"""The Optax chain does what the settings say; AdamW against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import errors, tree
from jaxgen.train import optimizer, schedule
from jaxgen.train.settings import TrainSettings

CONFIG = jaxgen.ModelConfig(vocab_size=23, context=12, layers=2, d_model=16, heads=2)
AXES = jaxgen.axes(CONFIG)


def settings(**changes):
    return TrainSettings(**{"schedule": "constant", "warmup": 0, "clip": None} | changes)


def trees(seed=0):
    """Params and gradients of every shape of the model, drawn from normals."""
    shapes = tree.flatten(jaxgen.abstract(CONFIG))
    rng = np.random.default_rng(seed)

    def draw():
        return tree.unflatten(
            {p: jnp.asarray(rng.normal(size=s.shape), s.dtype) for p, s in shapes.items()}
        )

    return draw(), draw()


def moved(tx, params, grads, steps=1):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adamw_matches_its_formula_in_float64():
    params, grads = trees()
    tx = optimizer.make(settings(learning_rate=1e-2, weight_decay=0.2, beta2=0.95), AXES)
    found = tree.flatten(moved(tx, params, grads, steps=5))
    for path, start in tree.flatten(params).items():
        p, g = np.float64(start), np.float64(tree.flatten(grads)[path])
        m = v = np.zeros_like(p)
        decay = 0.0 if tree.match(path, ("*bias", "*norm*")) else 0.2
        for t in range(1, 6):
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
            p = p - 1e-2 * (step + decay * p)
        np.testing.assert_allclose(found[path], p, rtol=2e-5, atol=1e-6, err_msg=path)


def test_clipping_scales_the_global_norm():
    params, grads = trees()
    norm = float(optax.global_norm(grads))
    tx = optimizer.make(settings(clip=norm / 4), AXES)
    clipped = jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])(grads)
    plain = optimizer.make(settings(), AXES)
    quarter = jax.tree.map(lambda g: g / 4, grads)
    wanted = jax.jit(lambda g: plain.update(g, plain.init(params), params)[0])(quarter)
    for path, update in tree.flatten(wanted).items():
        np.testing.assert_allclose(tree.flatten(clipped)[path], update, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_frozen_paths_stay_and_all_others_move(name):
    params, grads = trees()
    frozen = ("embed/*", "layers/attn/q*")
    tx = optimizer.make(settings(optimizer=name, freeze=frozen, clip=1.0), AXES)
    after = tree.flatten(moved(tx, params, grads))
    for path, before in tree.flatten(params).items():
        same = bool((after[path] == before).all())
        assert same == tree.match(path, frozen), path


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor", "sgd"])
def test_decay_shrinks_what_it_may_and_nothing_else(name):
    params, _ = trees()
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optimizer.make(settings(optimizer=name, learning_rate=0.1, weight_decay=0.5), AXES)
    after = tree.flatten(moved(tx, params, zeros))
    for path, before in tree.flatten(params).items():
        kept = 1.0 if tree.match(path, ("*bias", "*norm*")) else 0.95
        np.testing.assert_allclose(after[path], kept * before, rtol=1e-5, err_msg=path)


def test_lion_moves_by_signs():
    params, grads = trees()
    tx = optimizer.make(settings(optimizer="lion", learning_rate=0.01, weight_decay=0.0), AXES)
    after = moved(tx, params, grads)
    for path, before in tree.flatten(params).items():
        sign = np.sign(tree.flatten(grads)[path])
        np.testing.assert_allclose(tree.flatten(after)[path], before - 0.01 * sign, atol=1e-6)


def test_muon_orthogonalises_layer_matrices_and_leaves_tables_to_adam():
    letters = tree.flatten(AXES)
    for path, axes in letters.items():
        is_matrix = optimizer.matrix_axes(axes) is not None
        assert is_matrix == (
            path.startswith("layers/") and not tree.match(path, ("*norm*", "*bias"))
        ), path
    params, grads = trees()
    tx = optimizer.make(settings(optimizer="muon", learning_rate=1.0, weight_decay=0.0), AXES)
    updates, _ = tx.update(grads, tx.init(params), params)
    up = np.asarray(updates["layers"]["feed"]["up"])[0]
    values = np.linalg.svd(up, compute_uv=False)
    # Five Newton-Schulz steps leave all singular values within a band around one another.
    assert values.max() / values.min() < 2.5
    raw = np.linalg.svd(np.asarray(grads["layers"]["feed"]["up"])[0], compute_uv=False)
    assert raw.max() / raw.min() > values.max() / values.min()
    assert np.sqrt((up**2).mean()) == pytest.approx(0.2, rel=0.3)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(errors.ConfigError, match="freeze='layer/attn/q' matches no parameter"):
        optimizer.make(settings(freeze=("layer/attn/q",)), AXES)


STEPS, WARMUP = 1000, 100
AFTER = {  # fraction of the peak at a step from WARMUP on, each as its paper or Optax has it
    "cosine": lambda step: optax.cosine_decay_schedule(1.0, STEPS - WARMUP, 0.1)(step - WARMUP),
    "linear": lambda step: optax.linear_schedule(1.0, 0.1, STEPS - WARMUP)(step - WARMUP),
    "inverse_sqrt": lambda step: (WARMUP / step) ** 0.5,
    "wsd": lambda step: optax.linear_schedule(1.0, 0.1, 200, STEPS - 200)(step),
    "constant": lambda step: 1.0,
}


@pytest.mark.parametrize("name", AFTER)
def test_schedules_are_those_of_their_papers(name):
    rate = schedule.make(
        TrainSettings(steps=STEPS, warmup=WARMUP, schedule=name, learning_rate=2.0, final_rate=0.1)
    )
    for step in range(0, WARMUP, 9):
        assert float(rate(step)) == pytest.approx(2.0 * (step + 1) / (WARMUP + 1), rel=1e-6)
    for step in range(WARMUP, STEPS + 1, 50):
        assert float(rate(step)) == pytest.approx(2.0 * float(AFTER[name](step)), rel=1e-5), step


def test_inverse_sqrt_is_the_formula_of_attention_is_all_you_need():
    width, warmup = 512, 4000
    peak = (width * warmup) ** -0.5
    wanted = [width**-0.5 * min(n**-0.5, n * warmup**-1.5) for n in (4000, 16000, 100_000)]
    rate = schedule.make(
        TrainSettings(
            steps=100_000,
            warmup=warmup,
            schedule="inverse_sqrt",
            learning_rate=peak,
            final_rate=0.0,
        )
    )
    np.testing.assert_allclose([rate(n) for n in (4000, 16000, 100_000)], wanted, rtol=1e-6)


def test_a_rate_never_jumps_where_the_fall_would_begin_in_the_warmup():
    rate = schedule.make(TrainSettings(steps=100, warmup=50, schedule="wsd", decay=0.8))
    assert float(rate(50)) == pytest.approx(1e-3) and float(rate(100)) == pytest.approx(1e-4)


def test_adamw_matches_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, target = rng.normal(size=(2, 30)).astype("f4")
    tx = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    ours, state = jnp.asarray(start), tx.init(jnp.asarray(start))
    theirs = torch.nn.Parameter(torch.tensor(start))
    other = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    update = jax.jit(tx.update)
    for _ in range(200):
        updates, state = update(ours - target, state, ours)
        ours = ours + updates
        theirs.grad = theirs.detach() - torch.tensor(target)
        other.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=5e-5)


@pytest.mark.parametrize("freeze", [(), ("layers/attn/k",)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_zeros_that_are_kept_stay_and_what_is_beside_them_moves(name, freeze):
    params, grads = trees()
    flat = tree.flatten(params)
    for path in ("layers/attn/q", "layers/feed/up", "layers/attn/k", "embed/tokens"):
        flat[path] = flat[path].at[..., ::2].set(0.0)
    rule = settings(optimizer=name, zeros=("layers/attn/*",), freeze=freeze)
    after = tree.flatten(moved(optimizer.make(rule, AXES), tree.unflatten(flat), grads, steps=2))
    for path, before in flat.items():
        kept = path.startswith("layers/attn/") and np.any(before == 0)
        assert bool(jnp.all(after[path][..., ::2] == 0)) == kept, path
        assert bool(jnp.all(after[path][..., 1::2] == before[..., 1::2])) == (path in freeze), path


def test_zeros_of_no_matrix_are_refused():
    with pytest.raises(errors.ConfigError, match="zeros='layers/atn/\\*' matches no parameter"):
        optimizer.make(settings(zeros=("layers/atn/*",)), AXES)

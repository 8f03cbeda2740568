"""Mixtures of experts: decoding, training, serving, devices, and beginning as a dense model."""

from pathlib import Path

import fake_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tree
from jaxgen.config_experts import Experts
from jaxgen.config_groups import LayerKind
from jaxgen.errors import ConfigError
from jaxgen.models import api, serving
from jaxgen.nn.unroll import UNROLL_LIMITS
from jaxgen.run import upcycling
from jaxgen.train import optimizer
from jaxgen.train.settings import TrainSettings

BASE = jaxgen.ModelConfig(
    vocab_size=32, context=16, layers=2, d_model=16, heads=2, d_ff=24, norm="rms",
    positions="rope", feed="swiglu", biases="none",
)  # fmt: skip
LEADING = BASE.replace(
    experts=Experts(
        number=4, first_dense=1, shared=8, shared_gate="sigmoid", router="sigmoid", scale=2.0,
        choice_bias="bias", balance=0.01, z=1e-3,
    )
)  # fmt: skip
ALTERNATE = BASE.replace(
    layers=3,
    pattern=("plain", "global"),
    kinds={"plain": LayerKind(feed="dense")},
    experts=Experts(number=4, active=1, router="sigmoid", normalise="all", weigh="input"),
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 32)
BATCH = {"tokens": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}


@pytest.mark.parametrize("config", [LEADING, ALTERNATE], ids=["leading", "alternate"])
def test_a_cache_unrolled_layers_and_int8_decode_what_all_tokens_at_once_give(config, monkeypatch):
    params = jaxgen.init(config, jax.random.key(0))
    wanted = jaxgen.apply(params, config, TOKENS).logits
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 48))
    ready = serving.ready(params, config)
    assert serving.is_unrolled(ready)
    cache = jaxgen.empty_cache(config, batch=2, capacity=9, unrolled=True)
    begun = jaxgen.apply(ready, config, TOKENS[:, :8], cache=cache)
    last = jaxgen.apply(ready, config, TOKENS[:, 8:], cache=begun.cache)
    found = jnp.concatenate([begun.logits, last.logits], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    one, other = (api.hidden(p, config, TOKENS).router for p in (ready, params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)
    texts = [
        jaxgen.generate(p, config, TOKENS, jax.random.key(0), length=4) for p in (ready, params)
    ]
    np.testing.assert_array_equal(*texts)
    int8 = serving.ready(params, config, weights="int8")
    paths = {path for path in tree.flatten(params) if path.endswith("experts/up")}
    assert paths and not paths & {p for p, x in tree.flatten(int8).items() if hasattr(x, "ndim")}
    np.testing.assert_allclose(jaxgen.apply(int8, config, TOKENS).logits, wanted, atol=0.02)
    back = tree.flatten(serving.stacked(ready))
    assert all((back[path] == leaf).all() for path, leaf in tree.flatten(params).items())


def test_the_router_is_trained_to_share_out_tokens_and_padding_does_not_count():
    rule = optimizer.make(
        TrainSettings(warmup=0, learning_rate=1e-9, weight_decay=0.5), api.axes(LEADING),
        balance_rate=0.25,
    )  # fmt: skip
    params = jaxgen.init(LEADING, jax.random.key(0))
    state = jaxgen.train_state(params, rule, jax.random.key(1))
    step = jax.jit(
        lambda s, b, config: jaxgen.train_step(
            s, b, config=config, optimizer=rule, loss=jaxgen.causal_loss
        ),
        static_argnums=2,
    )
    new, metrics = step(state, BATCH, LEADING)
    more = 0.01 * metrics["router_balance"] + 1e-3 * metrics["router_z"]
    np.testing.assert_allclose(metrics["objective"] - metrics["loss"], more, rtol=1e-3)
    moved = new.params["layers"]["experts"]["choice_bias"]
    assert set(np.unique(moved)) <= {-0.25, 0.0, 0.25} and (moved != 0).any()
    _, again = step(state, BATCH, LEADING.replace(remat="full"))
    np.testing.assert_allclose(again["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    # A row of padding changes nothing.
    rows = {name: jnp.concatenate([x, jnp.zeros_like(x[:1])]) for name, x in BATCH.items()}
    real = jnp.asarray([1, 1, 0])[:, None] * jnp.ones((3, 8), jnp.int32)
    _, padded = step(state, rows | {"segments": real, "weights": real}, LEADING)
    for name in ("router_balance", "router_z", "router_busiest", "objective"):
        np.testing.assert_allclose(padded[name], metrics[name], rtol=1e-5)


def test_a_token_counts_the_experts_it_goes_to():
    used, there = api.active(LEADING), tree.flatten(api.abstract(LEADING))
    assert 2 * used["layers/experts/up"] == there["layers/experts/up"].size
    for path in ("layers/experts/router", "layers/experts/shared/up", "first/0/feed/up"):
        assert used[path] == there[path].size


@pytest.mark.parametrize(
    "own",
    [
        Experts(number=4),
        Experts(number=4, active=1, normalise="all", router="sigmoid", scale=2.0),
        Experts(number=8, active=4, d_ff=12, scale=2.5, router="sigmoid"),
        Experts(number=4, d_ff=4, shared=16, shared_gate="sigmoid"),
    ],
    ids=["copies", "top 1", "slices", "shared"],
)
def test_experts_begin_as_a_dense_feed_forward_or_as_its_slices(own):
    dense_config = BASE.replace(biases="feed")
    config = dense_config.replace(experts=own)
    dense = random_params(dense_config)
    fresh = tree.flatten(jaxgen.init(config.replace(init_std=1e-6), jax.random.key(2)))
    begun = upcycling.upcycle(tree.flatten(dense), fresh, config)
    params = tree.unflatten(fresh | begun)
    drawn = {"layers/experts/router"} if not own.d_ff else set()
    drawn |= {"layers/experts/shared_gate"} if own.shared else set()
    assert fresh.keys() - begun.keys() == drawn
    found = jaxgen.apply(params, config, TOKENS).logits
    np.testing.assert_allclose(found, jaxgen.apply(dense, dense_config, TOKENS).logits, atol=1e-5)
    if own.d_ff:  # the same seed, the same router; another seed, another
        again, other = (upcycling.upcycle(tree.flatten(dense), fresh, config, s) for s in (0, 1))
        router = "layers/experts/router"
        assert (again[router] == begun[router]).all() and (other[router] != begun[router]).all()


@pytest.mark.parametrize(
    ("own", "part"),
    [
        ({"number": 4, "d_ff": 10}, "cuts the d_ff=24 of init_from into parts that are not equal"),
        ({"number": 4, "d_ff": 48}, "give experts.d_ff=24, or a divisor"),
        ({"number": 9, "d_ff": 12}, "experts.number=9 is not a multiple of the 2 experts"),
        ({"number": 8, "d_ff": 12, "active": 1}, "nearest that are: 2"),
        ({"number": 8, "d_ff": 8, "shared": 12}, "cuts the d_ff=24 of init_from less shared=12"),
        ({"number": 8, "shared": 24}, "experts.shared=24 leaves nothing of the d_ff=24"),
        ({"number": 8, "first_dense": 1}, "first_dense=1: all of a dense model's feed-forward"),
    ],
)
def test_experts_that_do_not_come_out_of_a_dense_feed_forward_are_refused(own, part):
    config = BASE.replace(experts=Experts(**own))
    there, wanted = (tree.flatten(jaxgen.abstract(c)) for c in (BASE, config))
    with pytest.raises(ConfigError, match=part):
        upcycling.upcycle(
            {path: np.zeros(x.shape, "f4") for path, x in there.items()}, wanted, config
        )


def test_eight_devices_train_experts_and_adapters_as_one():
    assert fake_devices.run_checks(Path(__file__).with_name("mixture_program.py"), 8) == []


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"active": 3}, "active=3 has no effect: experts.number=0"),
        ({"number": 4, "active": 5}, "more than the 4 experts"),
        ({"number": 6, "groups": 4}, "not a multiple of experts.groups=4"),
        ({"number": 8, "groups": 4, "active_groups": 1, "active": 3}, "more than the 2 experts"),
        ({"number": 4, "router": "sparsemixer", "active": 1}, "give active=2"),
        ({"number": 4, "router": "sparsemixer", "scale": 2.0}, "scale=2.0 has no effect"),
        ({"number": 4, "shared_gate": "sigmoid"}, "no effect: shared=0"),
        ({"number": 4, "balance_rate": 0.1}, "no effect: choice_bias=none"),
        ({"number": 4, "balance_over": "model"}, "no effect: balance=0"),
        ({"number": 4, "balance": -1.0}, "balance=-1.0 must be 0 or more"),
    ],
)
def test_experts_that_cannot_be_are_refused_with_the_field(fields, part):
    with pytest.raises(ConfigError, match=part):
        Experts(**fields)


def test_layers_without_experts_where_the_config_wants_them_are_refused():
    with pytest.raises(ConfigError, match="first_dense=1 must be a multiple of the 2 layers"):
        ALTERNATE.replace(experts=Experts(number=4, first_dense=1))
    with pytest.raises(ConfigError, match="needs experts"):
        ALTERNATE.replace(experts=Experts())
    with pytest.raises(ConfigError, match="one tower"):
        BASE.replace(topology="encoder_decoder", experts=Experts(number=4))

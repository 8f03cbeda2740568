"""Validation figures depend on the text alone; arithmetic counts as papers count it."""

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.train import flops
from jaxgen.train.validate import validate

CONFIG = jaxgen.ModelConfig(vocab_size=23, context=12, layers=2, d_model=16, heads=2, init_std=0.2)


def rows(batch, count=7):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 23, (count, 13)).astype("i4")
    full = -(-count // batch) * batch
    tokens = np.pad(tokens, ((0, full - count), (0, 0)))
    weights = np.pad(np.ones((count, 12), "f4"), ((0, full - count), (0, 0)))
    for at in range(0, full, batch):
        part = slice(at, at + batch)
        yield {
            "tokens": tokens[part, :-1],
            "targets": tokens[part, 1:],
            "weights": weights[part],
            "segments": np.ones((batch, 12), "i4"),
            "positions": np.tile(np.arange(12, dtype="i4"), (batch, 1)),
        }


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))


def test_figures_do_not_depend_on_batch_or_padding(params):
    widths = np.arange(23) % 4
    found = [validate(params, CONFIG, rows(batch), widths) for batch in (1, 3, 7)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)
    assert found[0]["tokens"] == 84


def test_perplexity_and_bits_per_byte_follow_from_the_loss(params):
    widths = np.full(23, 2)
    found = validate(params, CONFIG, rows(7), widths)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / np.log(2) / 2)
    logits = jaxgen.apply(params, CONFIG, next(rows(7))["tokens"]).logits
    picked = jax.nn.log_softmax(logits)[
        np.arange(7)[:, None], np.arange(12), next(rows(7))["targets"]
    ]
    assert found["loss"] == pytest.approx(-float(picked.mean()), rel=1e-5)


def test_a_split_without_targets_is_refused(params):
    with pytest.raises(errors.DataError, match="no token to predict"):
        validate(params, CONFIG, [], np.ones(23))


def test_flops_of_gpt2_are_six_per_weight_and_attention():
    config = jaxgen.preset("gpt2-124m")
    layers = 12 * (4 * 768**2 + 8 * 768**2)
    wanted = 6 * (layers + 50257 * 768) + 12 * 12 * 768 * 1024
    assert flops.per_token(config) == pytest.approx(wanted)


def test_flops_of_layers_follow_their_kind():
    sizes = {"vocab_size": 8, "context": 32, "layers": 2, "d_model": 16, "heads": 2}
    plain = jaxgen.ModelConfig(**sizes, positions="rope")
    weights = lambda config: flops.per_token(config) - 6 * mixing[config]  # noqa: E731
    latent = jaxgen.Latent(kv_rank=8, rope_width=4, plain_width=6, value_width=10)
    delta = jaxgen.Delta(key_heads=1, value_heads=2, key_width=4, value_width=8)
    kinds = {"linear": jaxgen.LayerKind(mixer="delta")}
    narrow = plain.replace(latent=latent)
    mixed = plain.replace(pattern=("linear", "global"), kinds=kinds, delta=delta)
    mixing = {
        plain: 2 * 2 * (8 + 8) * 32,
        narrow: 2 * 2 * (6 + 4 + 10) * 32,
        mixed: 2 * (8 + 8) * 32 + 3 * 2 * 4 * 8,
    }
    longer = {config: config.replace(context=64) for config in mixing}
    mixing |= {
        longer[plain]: 2 * mixing[plain],
        longer[narrow]: 2 * mixing[narrow],
        longer[mixed]: 2 * 2 * (8 + 8) * 32 + 3 * 2 * 4 * 8,
    }
    # What is left are products with weights, which the length of a text does not change.
    assert all(weights(config) == weights(longer[config]) for config in longer)

"""No option of training is parsed and ignored: each changes the parameters that come out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, tokens, tree
from jaxgen.run import step, training
from jaxgen.run.settings import build_settings, resolve
from jaxgen.train.losses import causal_loss
from jaxgen.train.state import evaluation_params

# fmt: off
BASE = {
    # Few arrays, because each run compiles what updates them.
    "model": {"context": 12, "layers": 1, "d_model": 8, "heads": 2, "dropout": 0.1,
              "positions": "none", "norm": "rms", "biases": "none"},
    "tokenizer": {"kind": "bytes"},
    "train": {"steps": 4, "batch": 4, "warmup": 1, "spike": None, "learning_rate": 0.01},
}
# fmt: on
CHANGES = {
    "steps": {"steps": 5},
    "batch": {"batch": 8},
    "accumulate": {"accumulate": 2},  # each microbatch has dropout of its own
    "optimizer": {"optimizer": "lion"},
    "learning_rate": {"learning_rate": 0.02},
    "schedule": {"schedule": "linear"},
    "warmup": {"warmup": 2},
    "decay": {"schedule": "wsd", "decay": 0.9},
    "final_rate": {"final_rate": 0.5},
    "beta1": {"beta1": 0.5},
    "beta2": {"beta2": 0.5},
    "epsilon": {"epsilon": 0.1},
    "weight_decay": {"weight_decay": 1.0},
    "no_decay": {"no_decay": ["*"]},
    "freeze": {"freeze": ["embed/*"]},
    "clip": {"clip": 0.01},
    "smoothing": {"smoothing": 0.3},
    "z_loss": {"z_loss": 0.1},
    "ema": {"ema": 0.5},  # of what is validated and saved for use
    "seed": {"seed": 1},
}
# What acts on the model or its loss; the others act on gradients and updates, whatever they are of.
OF_THE_LOSS = {"batch", "accumulate", "smoothing", "z_loss", "seed"}
# These change how, not what: they have tests of their own.
ELSEWHERE = {
    "track",
    "privacy",
    "federated",
    "adversarial",
    "zeros",
    "quantize",
    "epochs",
    "early_stopping",
    "loss_chunk",
    "spike",
    "patience",
    "log_every",
    "validate_every",
    "validate_batches",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    home = tmp_path_factory.mktemp("options")
    text = home / "text.txt"
    text.write_text("".join(f"line {i} of a text about the number {i * i}\n" for i in range(300)))
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    settings = data.DataSettings(files=(str(text),), split="tail")
    return tokenizer, data.prepare(settings, tokenizer, home / "cache")


def distance(params, config, batch, key=None, **_):
    """A loss that is compiled in no time."""
    return sum(jnp.sum((leaf - 0.1) ** 2) for leaf in jax.tree.leaves(params))


def trained(corpus, changes, loss=distance):
    """The parameters after the steps of a run, without its folder."""
    tokenizer, shards = corpus
    settings = build_settings(BASE | {"train": BASE["train"] | changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "causal_loss", loss)
        run = training.Run(resolve(settings, tokenizer), Path(), tokenizer, shards)
        state, batches = run.fresh(), run.batches()
        for _ in range(settings.train.steps):
            state, _ = run.step(state, {k: v for k, v in next(batches).items() if k != "index"})
        batches.close()
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(evaluation_params(state)).items()}


@pytest.fixture(scope="module")
def plain(corpus):
    """Return what comes out of no option, of wsd alone, and of no option with the real loss."""
    losses = {"plain": ({}, distance), "wsd": ({"schedule": "wsd"}, distance)}
    losses["real"] = {}, causal_loss
    return {name: trained(corpus, *how) for name, how in losses.items()}


@pytest.mark.parametrize(("name", "loss"), [("plain", distance), ("real", causal_loss)])
def test_the_same_options_give_the_same_parameters(corpus, plain, name, loss):
    again = trained(corpus, {}, loss)
    assert all((again[path] == leaf).all() for path, leaf in plain[name].items())


@pytest.mark.parametrize("name", CHANGES)
def test_each_option_of_training_changes_the_result(corpus, plain, name):
    real = name in OF_THE_LOSS
    found = trained(corpus, CHANGES[name], causal_loss if real else distance)
    reference = plain["real" if real else "wsd" if name == "decay" else "plain"]
    assert any((found[path] != leaf).any() for path, leaf in reference.items())


def test_every_option_is_here_or_has_a_test_of_its_own():
    from dataclasses import fields

    from jaxgen.train.settings import TrainSettings

    assert {field.name for field in fields(TrainSettings)} == CHANGES.keys() | ELSEWHERE

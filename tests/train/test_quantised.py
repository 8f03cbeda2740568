"""Training with rounded weights: the recipe's numbers, the exact ones' gradients, resuming."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.adapters.sites import sites
from jaxgen.cli.app import main
from jaxgen.compress import matrix
from jaxgen.compress.recipe import PRESETS
from jaxgen.errors import ConfigError
from jaxgen.pretrained.coded import of_leaf
from jaxgen.run import training
from jaxgen.run.settings import build_settings
from jaxgen.train import quantised

CONFIG = jaxgen.ModelConfig(
    vocab_size=64, context=16, layers=2, d_model=64, heads=2, d_ff=128, positions="rope"
)


@pytest.fixture(scope="module")
def params():
    return jaxgen.init(CONFIG, jax.random.key(0))


@pytest.mark.parametrize("form", quantised.GRIDS)
def test_a_rounded_weight_has_the_numbers_of_the_recipe_and_the_gradient_of_its_own(params, form):
    def energy(params):
        out = tree.flatten(quantised.straight_through(params, CONFIG, form))
        return sum(jnp.sum(leaf**2) for leaf in out.values()), out

    grads, rounded = jax.jit(jax.grad(energy, has_aux=True))(params)
    weights = tree.flatten(params)
    for path, site in sites(CONFIG).items():
        weight = weights[path]
        leaf = matrix.compress_matrix(weight[1], site, PRESETS[form], None).leaf
        numbers = of_leaf(leaf).numbers().T.reshape(site.shape)
        np.testing.assert_array_equal(rounded[path][1], numbers)
    same = {path for path, leaf in weights.items() if np.array_equal(leaf, rounded[path])}
    assert same == weights.keys() - sites(CONFIG).keys()
    for path, grad in tree.flatten(grads).items():
        np.testing.assert_array_equal(grad, 2 * rounded[path])


def settings_of(home, **train):
    model = {"layers": 1, "d_model": 64, "heads": 2, "d_ff": 64, "context": 16}
    return build_settings(
        {
            "model": {**model, "positions": "rope"},
            "tokenizer": {"kind": "bytes"},
            "data": {"files": [str(home / "text.txt")]},
            "train": {"steps": 4, "batch": 4, "warmup": 0, "learning_rate": 1e-2, **train},
            "checkpoint": {"every": 2},
            "sample": {"prompts": []},
        }
    )


def test_a_run_resumes_bit_for_bit_and_is_validated_as_rounded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("one two three four five six seven. " * 100)
    for name, train in (("whole", {"quantize": "int4"}), ("exact", {})):
        training.train(settings_of(tmp_path, **train), tmp_path / name, cache=tmp_path / "cache")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "00000004")
    training.resume(tmp_path / "again", (), cache=tmp_path / "cache")
    names = ("whole", "again", "exact")
    whole, again, exact = (tree.flatten(jaxgen.load(tmp_path / name)[1]) for name in names)
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, again[path])
    assert any((leaf != exact[path]).any() for path, leaf in whole.items())
    # What is validated is the rounded model, as `compress` makes it.
    whole, small = str(tmp_path / "whole"), str(tmp_path / "small")
    assert main(["compress", whole, "--recipe", "int4,tables=plain", "--out", small]) == 0
    capsys.readouterr()
    assert main(["eval", small, f"data.files={tmp_path / 'text.txt'}", "--split", "valid"]) == 0
    rows = map(json.loads, (tmp_path / "whole" / "metrics.jsonl").open())
    loss = [row["loss"] for row in rows if row["kind"] == "valid"][-1]
    found = float(re.search(r"loss +([0-9.]+) nats", capsys.readouterr().out)[1])
    assert found == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model": {"d_model": 48, "heads": 2}}, "groups of 64 inputs, but layers/attn/k has 48"),
     ({"model": {"experts": {"number": 2}}}, "is not for model.experts.number=2"),
     ({"adapter": {"kind": "lora"}, "init_from": "model"}, "is not for adapter.kind=lora"),
     ({"train": {"quantize": "int3"}}, "quantize='int3' is not one of int8, int4")],
)  # fmt: skip
def test_models_that_cannot_be_rounded_are_refused(change, said, params, tmp_path):
    if "init_from" in change:
        change = change | {"init_from": str(tmp_path / "model"), "tokenizer": {"kind": "init"}}
        jaxgen.save(tmp_path / "model", CONFIG, params)
    with pytest.raises(ConfigError, match=said):
        build_settings({"train": {"quantize": "int8"}, "tokenizer": {"kind": "bytes"}} | change)

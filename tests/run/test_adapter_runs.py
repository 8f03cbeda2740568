"""Runs that train an adapter: their checkpoints, what loads them, and what they refuse."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from random_params import random_params

import jaxgen
from jaxgen import data, tree
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.pretrained import adapted
from jaxgen.run import evaluation, forecast, inputs, training
from jaxgen.run.job import Run
from jaxgen.run.settings import build_settings, resolve
from jaxgen.tokens.plain import Bytes
from jaxgen.train import flops
from jaxgen.train.flops import per_token

MODEL = jaxgen.ModelConfig(
    vocab_size=259, context=16, layers=2, d_model=8, heads=2, norm="rms", positions="rope",
    biases="none", feed="swiglu", init_std=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    jaxgen.save(home / "base", MODEL, random_params(MODEL), tokenizer=Bytes())
    text = "".join(f"line {i} of a text about the number {i * i}\n" for i in range(200))
    (home / "text.txt").write_text(text)
    return home


def asked(home, adapter=None, **train):
    mapping = {
        "init_from": str(home / "base"),
        "adapter": {"kind": "dora", "rank": 2, "dropout": 0.1, "base": "int4"} | (adapter or {}),
        "data": {"files": [str(home / "text.txt")], "split": "tail"},
        "train": {"steps": 4, "batch": 4, "warmup": 1, "learning_rate": 0.02, "ema": 0.5,
                  "validate_every": 4, "validate_batches": 99, "track": [], **train},
        "checkpoint": {"every": 2, "keep_last": 3},
    }  # fmt: skip
    return build_settings(mapping)


@pytest.fixture(scope="module")
def run(home):
    training.train(asked(home), home / "run", cache=home / "cache")
    return home / "run"


def digests(folder, step):
    text = (folder / "checkpoints" / f"{step:08d}" / "manifest.json").read_text()
    return {name: row["sha256"] for name, row in json.loads(text)["arrays"].items()}


def test_a_checkpoint_holds_the_adapter_alone_and_is_generated_with_and_evaluated(run):
    assert not any("embed" in name or name.endswith("/q") for name in digests(run, 4))
    config, params = jaxgen.load(run)
    assert config == MODEL
    out = jaxgen.apply(params, config, [[1, 2, 3]]).logits
    base = jaxgen.apply(jaxgen.load(run.parent / "base")[1], config, [[1, 2, 3]]).logits
    assert np.abs(out - base).max() > 1e-3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [row["loss"] for row in rows][-1]
    found = dict(evaluation.evaluate(run, cache=run.parent / "cache"))
    assert found["checkpoint"] == "step 4" and abs(float(found["loss"].split()[0]) - valid) < 1e-4
    session = jaxgen.open(run)
    assert session.generate("line", temperature=0.0, max_new_tokens=3, seed=1) is not None


def test_a_run_that_goes_on_from_a_checkpoint_comes_to_the_same_bits(home, run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "00000004")
    training.train(asked(home), again, cache=home / "cache")
    assert digests(again, 4) == digests(run, 4)


def test_a_base_with_other_numbers_is_refused(run, tmp_path):
    shutil.copytree(run.parent, tmp_path / "moved")
    config = tmp_path / "moved" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(run.parent), str(tmp_path / "moved")))
    assert jaxgen.load(config.parent)[0] == MODEL
    shutil.rmtree(tmp_path / "moved" / "base")
    jaxgen.save(tmp_path / "moved" / "base", MODEL, random_params(MODEL, 3), tokenizer=Bytes())
    with pytest.raises(CheckpointError, match="run is an adapter of another base"):
        jaxgen.load(config.parent)
    with pytest.raises(CheckpointError, match="holds other weights than when the run began"):
        training.resume(config.parent, ["train.steps=5"], cache=tmp_path / "cache")


def test_a_merged_run_has_the_layout_of_the_model_beneath(run, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    home = run.parent
    assert app.main(["convert", str(home / "base"), str(tmp_path / "theirs"), "--to", "hf"]) == 0
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(home / "base"), str(tmp_path / "theirs")))
    wanted = jaxgen.load(run)[1]
    for source, name, file in (
        (run, "ours", "config.yaml"), (config.parent, "merged", "config.json")
    ):  # fmt: skip
        assert app.main(["merge", str(source), str(tmp_path / name)]) == 0
        assert (tmp_path / name / file).is_file()
        params = jaxgen.load(tmp_path / name)[1]
        one, other = (jaxgen.apply(p, MODEL, [[1, 2, 3]]).logits for p in (params, wanted))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_state_and_forecast_count_the_adapter_and_the_base_beneath_it(home):
    settings = resolve(asked(home, {"base": "plain"}), Bytes())
    tokenizer = inputs.make_tokenizer(settings)
    corpus = data.prepare(settings.data, tokenizer, home / "cache")
    job = Run(settings, home / "none", tokenizer, corpus)
    own, whole = tree.count(job.shapes.params), tree.count(jaxgen.abstract(MODEL))
    moments = sum(leaf.size for leaf in jax.tree.leaves(job.shapes.optimizer))
    assert own < whole / 4 and moments < 4 * own
    plan = forecast.plan_memory(settings, *forecast.this_machine())
    assert plan.memory["parameters"] == 4 * own
    assert plan.memory["parameters beneath the adapter"] == 4 * whole
    small = forecast.plan_memory(
        resolve(asked(home, {"base": "int8"}), Bytes()), *forecast.this_machine()
    )
    assert small.memory["parameters beneath the adapter"] < 3 * whole
    matmuls = per_token(MODEL) - 6 * flops._mixing(MODEL, "global") * MODEL.layers
    assert per_token(MODEL) - per_token(MODEL, beside=own) == matmuls / 3 - 6 * own


def test_pairs_are_validated_by_their_divergence_from_the_base_beneath(home, tmp_path):
    pairs = [{"prompt": f"{n}", "chosen": f" {n}", "rejected": " no"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    settings = build_settings({
        "init_from": str(home / "base"), "adapter": {"kind": "lora", "rank": 2},
        "objective": {"name": "preferences"}, "train": {"batch": 4, "steps": 1},
        "data": {"files": [str(tmp_path / "pairs.jsonl")], "valid_fraction": 0.5},
    })  # fmt: skip
    tokenizer = inputs.make_tokenizer(settings)
    settings = resolve(settings, tokenizer)
    job = Run(settings, tmp_path, tokenizer, inputs.prepare(settings, tokenizer, tmp_path))
    state = job.begin()
    assert abs(job.validate(state)["kl"]) < 1e-6
    moved = replace(state, params=jax.tree.map(lambda x: x + 0.1, state.params))
    assert job.validate(moved)["kl"] > 0.01


def test_a_prompt_is_trained_evaluated_and_written_for_peft(home, tmp_path):
    prompt = {"kind": "prompt", "tokens": 3, "rank": 8, "dropout": 0.0, "base": "plain"}
    settings = asked(home, prompt, steps=2)
    assert settings.row_length == 13
    training.train(settings, tmp_path / "run", cache=home / "cache")
    config, params = jaxgen.load(tmp_path / "run")
    out = jaxgen.apply(params, config, [[1, 2, 3]]).logits
    assert dict(evaluation.evaluate(tmp_path / "run", cache=home / "cache"))["checkpoint"]
    adapted.write_peft(tmp_path / "run", tmp_path / "peft")
    found = jaxgen.load(home / "base", adapter=tmp_path / "peft")[1]
    np.testing.assert_allclose(jaxgen.apply(found, config, [[1, 2, 3]]).logits, out, atol=1e-6)
    with pytest.raises(ConfigError, match=r"adapter.tokens=15 leave no room for a text"):
        asked(home, prompt | {"tokens": 15})


def test_a_private_adapter_promises_of_files_and_steps_as_far_as_the_clip_allows(home, tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"text of the file {i} " * 4)
    settings = build_settings({
        "init_from": str(home / "base"), "adapter": {"kind": "lora", "rank": 2},
        "data": {"files": [str(tmp_path / "*.txt")], "valid_fraction": 0.0, "test_fraction": 0.0},
        "train": {"batch": 6, "steps": 1, "optimizer": "sgd", "beta1": 0.0, "learning_rate": 1.0,
                  "warmup": 1, "weight_decay": 0.0, "privacy": {"noise_multiplier": 1e-6,
                  "delta": 1e-3, "unit": "file", "expected": 6.0, "clip": 0.01, "seed": 5}},
    })  # fmt: skip
    tokenizer = inputs.make_tokenizer(settings)
    settings = resolve(settings, tokenizer)
    job = Run(settings, tmp_path, tokenizer, inputs.prepare(settings, tokenizer, tmp_path / "c"))
    assert job.budget.population == 6 and job.budget.record(0)["norms"] == "ghost"
    state, batches = job.begin(), job.batches()
    before = jax.device_get(state.params)
    after, metrics = job.step(state, {k: v for k, v in next(batches).items() if k != "index"})
    batches.close()
    moved = optax.global_norm(jax.tree.map(np.subtract, jax.device_get(after.params), before))
    assert float(metrics["clipped"]) == 1.0
    # All files are drawn: six gradients of the clip's norm, divided by the six expected.
    assert 0.002 < moved <= 0.01 * 1.001


def test_what_an_adapter_cannot_stand_beside_is_refused(home):
    mapping = {"adapter": {"kind": "lora"}}
    with pytest.raises(ConfigError, match=r"adapter\.kind=lora needs init_from"):
        build_settings(mapping)
    for section, said in (
        ({"mesh": {"form": "shard_map"}}, "needs mesh.form=jit"),
        ({"train": {"freeze": ["embed/*"]}}, "has no effect with adapter.kind=lora"),
    ):
        with pytest.raises(ConfigError, match=said):
            build_settings(mapping | {"init_from": str(home / "base")} | section)
    grown = asked(home)
    grown = replace(grown, model=grown.model.replace(vocab_size=300))
    with pytest.raises(
        ConfigError, match=r"embed/tokens is not in .*adapter.save=\['embed/tokens'\]"
    ):
        training.train(grown, home / "grown", cache=home / "cache")

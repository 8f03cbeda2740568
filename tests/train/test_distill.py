"""Distillation: divergences against plain sums, and a student whose run resumes bit for bit."""

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.cli.app import main
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.run import shapes, training
from jaxgen.run.settings import build_settings, resolve
from jaxgen.run.teacher import read_teacher
from jaxgen.tokens.plain import Bytes
from jaxgen.train.distill import (
    attention_distance,
    distill_loss,
    divergence,
    hidden_distance,
    log_probs,
    taps_of,
    teach,
)
from jaxgen.train.settings import DistillSettings

KINDS = ["forward", "reverse", "jensen_shannon"]


def plain(p, q, kind, beta=0.5):
    """Sum a divergence of probabilities number by number, in float64."""
    kl = lambda a, b: sum(x * np.log(x / y) for x, y in zip(a, b, strict=True))  # noqa: E731
    if kind != "jensen_shannon":
        return kl(q, p) if kind == "forward" else kl(p, q)
    m = [(1 - beta) * x + beta * y for x, y in zip(p, q, strict=True)]
    return (1 - beta) * kl(p, m) + beta * kl(q, m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [None, 3])
def test_a_divergence_is_its_sum(kind, top):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 1, 5, 8)) * 2
    ids = None if top is None else jnp.asarray(np.argsort(-teacher, -1)[..., :top])
    got = divergence(
        *(log_probs(jnp.asarray(x, jnp.float32), ids, 1.5) for x in (student, teacher)), kind, 0.2
    )
    for t in range(5):
        p, q = (np.exp(x[0, t] / 1.5) / np.exp(x[0, t] / 1.5).sum() for x in (student, teacher))
        if ids is not None:
            p, q = ([*x[ids[0, t]], 1 - x[ids[0, t]].sum()] for x in (p, q))
        np.testing.assert_allclose(got[0, t], plain(p, q, kind, 0.2), atol=2e-6)


@pytest.mark.parametrize(("wide", "narrow"), [(16, 8), (8, 16)])
def test_layers_are_those_of_the_map_in_the_students_width_and_heads(wide, narrow):
    teacher = jaxgen.ModelConfig(vocab_size=8, context=6, layers=3, d_model=wide, heads=4)
    student = teacher.replace(layers=1, d_model=narrow, heads=2)
    asked = DistillSettings(layers=((0, 2),), hidden=1.0, attention=1.0)
    probs = np.random.default_rng(0).random((3, 1, 4, wide, wide), np.float32)
    hidden = np.zeros((3, 1, wide, wide), np.float32)
    hidden[2] = np.eye(wide)
    taps = {"layers/out": jnp.asarray(hidden), "layers/attn/probs": jnp.asarray(probs)}
    said = teach(jnp.zeros((1, wide, 8)), asked, taps, teacher, student)
    pairs = (probs[2, :, ::2] + probs[2, :, 1::2]) / 2
    np.testing.assert_allclose(said["teacher_attention"], pairs[:, None], rtol=1e-6)
    matrix = np.asarray(said["teacher_hidden"][0, 0])
    assert matrix.shape == (wide, narrow)
    products = matrix @ matrix.T if wide < narrow else matrix.T @ matrix
    np.testing.assert_allclose(products, np.eye(min(wide, narrow)), atol=1e-5)


def test_distances_of_layers_are_their_sums():
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), 2)
    own, other = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
    np.testing.assert_allclose(attention_distance(own, other), plain(p, q, "forward"), rtol=1e-5)
    cosine = p @ q / np.sqrt((p @ p) * (q @ q))
    np.testing.assert_allclose(hidden_distance(own * 3, other), 1 - cosine, rtol=1e-5)


def test_the_loss_mixes_divergence_and_text_and_is_zero_at_the_teacher():
    config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=1, d_model=16, heads=2)
    params = jaxgen.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 16)
    batch = {"tokens": tokens, "targets": jnp.roll(tokens, -1, 1).at[:, -1].set(-100)}
    batch |= {"weights": jnp.ones((2, 6)), "segments": jnp.ones((2, 6), jnp.int32)}
    batch["positions"] = jnp.broadcast_to(jnp.arange(6), (2, 6))
    own = jax.jit(lambda p: jaxgen.apply(p, config, tokens).logits)(params)
    layers = {"layers": ((0, 0),), "hidden": 1.0, "attention": 1.0}
    whole = DistillSettings(weight=1.0, temperature=2.0, **layers)
    marks = {name: batch[name] for name in ("segments", "positions")}
    taps = jax.jit(lambda p: jaxgen.apply(p, config, tokens, taps=taps_of(whole), **marks).taps)
    said = teach(own, whole, taps(params), config, config)

    def total(params):
        loss = distill_loss(params, config, {**batch, **said}, settings=whole)
        return loss.total, loss.weight

    (same, weight), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert abs(float(same)) < 1e-5 and float(weight) == 10
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-5
    half = DistillSettings(weight=0.25, temperature=2.0, top=4)
    other = {**batch, **teach(own * 2, half)}
    assert other["teacher"].shape == (2, 6, 5) and other["teacher_ids"].shape == (2, 6, 4)
    mixed = jax.jit(lambda p: distill_loss(p, config, other, settings=half))(params)
    text = jax.jit(lambda p: jaxgen.causal_loss(p, config, batch))(params)
    want = 0.25 * 4 * float(mixed.metrics["divergence"]) * 10 + 0.75 * float(text.total)
    np.testing.assert_allclose(mixed.total, want, rtol=1e-5)
    np.testing.assert_allclose(mixed.nll, text.nll, rtol=1e-5)


def settings_of(home, **more):
    return build_settings(
        {
            "model": {"layers": 1, "d_model": 16, "heads": 2, "context": 32, "positions": "rope"},
            "tokenizer": {"kind": "bytes"},
            "data": {"files": [str(home / "text.txt")]},
            "train": {"steps": 6, "batch": 4, "learning_rate": 1e-2, "warmup": 0, "log_every": 1},
            "checkpoint": {"every": 3},
            "sample": {"prompts": []},
            **more,
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a text and teachers: one that fits, and one of too short a context."""
    home = tmp_path_factory.mktemp("distill")
    (home / "text.txt").write_text("one two three four five six seven. " * 200)
    for name, context in (("teacher", 32), ("short", 16)):
        config = settings_of(home).model.replace(vocab_size=260, context=context)
        params = jaxgen.init(config, jax.random.key(1))
        jaxgen.save(home / name, config, params, tokenizer=Bytes())
    return home


def test_a_student_resumes_bit_for_bit_and_knows_its_teacher(home):
    cache = home / "cache"
    distill = {"teacher": str(home / "teacher"), "loss": "reverse", "top": 8, "weight": 1.0}
    distill["keep"] = str(home / "kept")
    training.train(settings_of(home, distill=distill), home / "whole", cache=cache)
    shutil.copytree(home / "whole", home / "again")
    shutil.rmtree(home / "again" / "checkpoints" / "00000006")
    training.resume(home / "again", (), cache=cache)
    one, two = (tree.flatten(jaxgen.load(home / name)[1]) for name in ("whole", "again"))
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path])
    assert len([*(home / "kept").glob("*.npz")]) == 6  # of as many steps, each asked once
    rows = map(json.loads, (home / "whole" / "metrics.jsonl").open())
    apart = [row["divergence"] for row in rows if "divergence" in row]
    assert apart[0] > 1.1 * apart[-1]
    (home / "again" / "teacher.json").write_text('{"sha256": "another"}')
    with pytest.raises(ConfigError, match=r"is not the model that .* was begun with"):
        training.resume(home / "again", ["train.steps=8"], cache=cache)


def test_a_teacher_is_found_by_its_name_in_runs(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "teacher", tmp_path / "runs" / "wise")
    text = f"data: {{files: ['{home / 'text.txt'}']}}\ntokenizer: {{kind: bytes}}\n"
    (tmp_path / "my.yaml").write_text(text)
    for key in ("distill.teacher", "init_from"):
        assert main(["train", "my.yaml", f"{key}=wise", "--print-config"]) == 0
        assert "runs/wise" in capsys.readouterr().out
    assert main(["train", "my.yaml", "distill.teacher=nobody", "--out", "new"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_taught_batch_has_the_shapes_that_are_planned_for(home):
    teacher = settings_of(home).model.replace(
        vocab_size=260, layers=3, d_model=24, heads=4, head_dim=6
    )
    params = jaxgen.init(teacher, jax.random.key(2))
    jaxgen.save(home / "wide", teacher, params, tokenizer=Bytes())
    layers = {"layers": [[0, 2]], "hidden": 0.5, "attention": 2.0}
    asked = settings_of(home, distill={"teacher": str(home / "wide"), "top": 3, **layers})
    settings = resolve(asked, Bytes())
    batch = {name: np.ones((4, 32), np.int32) for name in ("tokens", "segments")}
    batch["positions"] = np.broadcast_to(np.arange(32), (4, 32))
    said = read_teacher(settings, Bytes(), home / "nowhere", "").add(batch)
    planned = shapes.batch(settings)
    assert planned.keys() - {"targets", "weights"} == said.keys()
    assert all(said[name].shape == planned[name].shape for name in said)
    np.testing.assert_allclose(said["teacher_attention"].sum(-1), 1, atol=1e-5)
    student = jaxgen.init(settings.model, jax.random.key(3))
    batch |= {**said, "targets": batch["tokens"], "weights": np.ones((4, 32), np.float32)}
    other = replace(asked.distill, layers=(), hidden=0.0, attention=0.0)
    both, alone = jax.jit(lambda batch: [distill_loss(student, settings.model, batch, settings=own)
                                         for own in (asked.distill, other)])(batch)  # fmt: skip
    more = 0.5 * both.metrics["hidden"] + 2 * both.metrics["attention"]
    np.testing.assert_allclose(both.total, alone.total + 128 * more, rtol=1e-4)
    assert 0 < both.metrics["hidden"] < 2 and both.metrics["attention"] > 0


def test_what_a_teacher_said_is_kept_for_its_text_and_damage_is_named(home):
    distill = {"teacher": str(home / "teacher"), "top": 8, "keep": str(home / "said")}
    ask = lambda data, **more: read_teacher(  # noqa: E731
        resolve(settings_of(home, distill={**distill, **more}), Bytes()), Bytes(), home / "no", data
    )
    batch = {name: np.zeros((2, 4), np.int32) for name in ("tokens", "segments", "positions")}
    teacher = ask("text")
    first = teacher.add(batch)
    again = replace(ask("text"), ask=None, read=dict).add(batch)  # which asks no model
    assert all(np.array_equal(first[name], again[name]) for name in first)
    others = {"data": {}, "top": {"top": 4}, "temperature": {"temperature": 2.0}}
    for part, more in others.items():
        with pytest.raises(ConfigError, match=re.escape(f"(its {part})")):
            ask("other" if part == "data" else "text", **more)
    (file,) = (home / "said").glob("*.npz")
    for name in batch:
        teacher.add({**batch, name: batch[name] + 1})
    assert len([*(home / "said").glob("*.npz")]) == 4
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="is damaged; remove it"):
        ask("text").add(batch)


@pytest.mark.parametrize(
    ("section", "said"),
    [({"weight": 0.0}, "weight=0.0 must be greater than 0"),
     ({"temperature": 0.0}, "temperature=0.0 must be greater"),
     ({"top": 0}, "top=0 must be at least 1"),
     ({"weight": 0.9}, "has no effect without a teacher"),
     ({"beta": 0.1}, "beta=0.1 has no effect with loss=forward"),
     ({"layers": [[0, 1]]}, "give layers and a weight"), ({"hidden": 1.0}, "give layers and a wei"),
     ({"layers": [["a", 1]]}, "layers"), ({"keep": "x"}, "give top, as top=32"),
     ({"tutor": "x"}, "unknown key 'distill.tutor'")],
)  # fmt: skip
def test_settings_without_sense_are_refused(tmp_path, section, said):
    with pytest.raises(ConfigError, match=said):
        settings_of(tmp_path, distill=section)


def test_a_teacher_of_another_kind_is_refused(home, tmp_path):
    distill = {"teacher": str(home / "short")}
    with pytest.raises(ConfigError, match="has a context of 16, shorter than"):
        training.train(settings_of(home, distill=distill), tmp_path / "run", cache=home / "cache")
    distill = {"teacher": str(home / "teacher"), "top": 260}
    with pytest.raises(ConfigError, match=r"distill\.top=260 must be less than"):
        training.train(settings_of(home, distill=distill), tmp_path / "run", cache=home / "cache")
    for layers, part in (([[1, 0]], "the model has no layer 1"), ([[0, 5]], "the teacher has no")):
        distill = {"teacher": str(home / "teacher"), "layers": layers, "attention": 1.0}
        settings = settings_of(home, distill=distill)
        with pytest.raises(ConfigError, match=part):
            read_teacher(resolve(settings, Bytes()), Bytes(), tmp_path, "")
    with pytest.raises(ConfigError, match=r"don't go with distill\.teacher"):
        more = {"steps": 6, "batch": 4, "smoothing": 0.1}
        settings_of(home, distill=distill, train=more)

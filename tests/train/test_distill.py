"""Distillation: divergences against plain sums, and a student whose run resumes bit for bit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.cli.app import main
from jaxgen.errors import ConfigError
from jaxgen.run import training
from jaxgen.run.settings import build_settings
from jaxgen.tokens.plain import Bytes
from jaxgen.train.distill import distill_loss, divergence, log_probs, teach
from jaxgen.train.settings import DistillSettings

KINDS = ["forward", "reverse", "jensen_shannon"]


def plain(p, q, kind):
    """Sum a divergence of probabilities number by number, in float64."""
    kl = lambda a, b: sum(x * np.log(x / y) for x, y in zip(a, b, strict=True))  # noqa: E731
    if kind != "jensen_shannon":
        return kl(q, p) if kind == "forward" else kl(p, q)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [None, 3])
def test_a_divergence_is_its_sum(kind, top):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 1, 5, 8)) * 2
    ids = None if top is None else jnp.asarray(np.argsort(-teacher, -1)[..., :top])
    got = divergence(
        *(log_probs(jnp.asarray(x, jnp.float32), ids, 1.5) for x in (student, teacher)), kind
    )
    for t in range(5):
        p, q = (np.exp(x[0, t] / 1.5) / np.exp(x[0, t] / 1.5).sum() for x in (student, teacher))
        if ids is not None:
            p, q = ([*x[ids[0, t]], 1 - x[ids[0, t]].sum()] for x in (p, q))
        np.testing.assert_allclose(got[0, t], plain(p, q, kind), atol=2e-6)


def test_the_loss_mixes_divergence_and_text_and_is_zero_at_the_teacher():
    config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=1, d_model=16, heads=2)
    params = jaxgen.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 16)
    batch = {"tokens": tokens, "targets": jnp.roll(tokens, -1, 1).at[:, -1].set(-100)}
    batch |= {"weights": jnp.ones((2, 6)), "segments": jnp.ones((2, 6), jnp.int32)}
    batch["positions"] = jnp.broadcast_to(jnp.arange(6), (2, 6))
    own = jax.jit(lambda p: jaxgen.apply(p, config, tokens).logits)(params)
    whole = DistillSettings(weight=1.0, temperature=2.0)

    def total(params):
        loss = distill_loss(params, config, {**batch, **teach(own, whole)}, settings=whole)
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
    training.train(settings_of(home, distill=distill), home / "whole", cache=cache)
    shutil.copytree(home / "whole", home / "again")
    shutil.rmtree(home / "again" / "checkpoints" / "00000006")
    training.resume(home / "again", (), cache=cache)
    one, two = (tree.flatten(jaxgen.load(home / name)[1]) for name in ("whole", "again"))
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path])
    rows = map(json.loads, (home / "whole" / "metrics.jsonl").open())
    apart = [row["divergence"] for row in rows if "divergence" in row]
    assert apart[0] > 1.1 * apart[-1]
    (home / "again" / "teacher.json").write_text('{"sha256": "another"}')
    with pytest.raises(ConfigError, match="is not the model that the run began with"):
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_that_of_torch(kind):
    torch = pytest.importorskip("torch")
    kl = torch.nn.functional.kl_div
    student, teacher = np.random.default_rng(1).normal(size=(2, 4, 32)).astype(np.float32) * 3
    got = divergence(*(log_probs(jnp.asarray(x), None, 2.0) for x in (student, teacher)), kind)
    p, q = (torch.log_softmax(torch.tensor(x) / 2.0, -1) for x in (student, teacher))
    mixed = torch.logaddexp(p, q) - np.log(2.0)
    far = {
        "forward": lambda: kl(p, q, reduction="none", log_target=True),
        "reverse": lambda: kl(q, p, reduction="none", log_target=True),
        "jensen_shannon": lambda: (
            kl(mixed, q, reduction="none", log_target=True)
            + kl(mixed, p, reduction="none", log_target=True)
        ) / 2,
    }  # fmt: skip
    np.testing.assert_allclose(got, far[kind]().sum(-1).numpy(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("section", "said"),
    [({"weight": 0.0}, "weight=0.0 must be greater than 0"),
     ({"temperature": 0.0}, "temperature=0.0 must be greater"),
     ({"top": 0}, "top=0 must be at least 1"),
     ({"weight": 0.9}, "has no effect without a teacher"),
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
    with pytest.raises(ConfigError, match=r"don't go with distill\.teacher"):
        more = {"steps": 6, "batch": 4, "smoothing": 0.1}
        settings_of(home, distill=distill, train=more)

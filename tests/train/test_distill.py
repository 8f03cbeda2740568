"""Distillation: divergences against plain sums, and a student whose run resumes bit for bit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.errors import ConfigError
from jaxgen.run import training
from jaxgen.run.settings import build_settings
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
    own = jaxgen.apply(params, config, tokens).logits
    whole = DistillSettings(weight=1.0, temperature=2.0)
    same = distill_loss(params, config, {**batch, **teach(own, whole)}, settings=whole)
    assert abs(float(same.total)) < 1e-5 and float(same.weight) == 10
    grads = jax.grad(
        lambda p: distill_loss(p, config, {**batch, **teach(own, whole)}, settings=whole).total
    )(params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-5
    half = DistillSettings(weight=0.25, temperature=2.0, top=4)
    other = {**batch, **teach(own * 2, half)}
    assert other["teacher"].shape == (2, 6, 5) and other["teacher_ids"].shape == (2, 6, 4)
    found = distill_loss(params, config, other, settings=half)
    text = jaxgen.causal_loss(params, config, batch)
    want = 0.25 * 4 * float(found.metrics["divergence"]) * 10 + 0.75 * float(text.total)
    np.testing.assert_allclose(found.total, want, rtol=1e-5)
    np.testing.assert_allclose(found.nll, text.nll, rtol=1e-5)


def settings_of(home, **more):
    return build_settings(
        {
            "model": {"layers": 1, "d_model": 32, "heads": 2, "context": 32, "positions": "rope"},
            "tokenizer": {"kind": "bytes"},
            "data": {"files": [str(home / "text.txt")]},
            "train": {"steps": 6, "batch": 4, "learning_rate": 1e-2, "warmup": 0},
            "checkpoint": {"every": 3},
            "sample": {"prompts": []},
            **more,
        }
    )


def test_a_student_resumes_bit_for_bit_and_knows_its_teacher(tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five six seven. " * 200)
    cache = tmp_path / "cache"
    training.train(settings_of(tmp_path), tmp_path / "teacher", cache=cache)
    distill = {"teacher": str(tmp_path / "teacher"), "loss": "reverse", "top": 8}
    settings = settings_of(tmp_path, distill=distill)
    training.train(settings, tmp_path / "whole", cache=cache)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "00000006")
    training.resume(tmp_path / "again", (), cache=cache)
    one, two = (jaxgen.load(tmp_path / name)[1] for name in ("whole", "again"))
    plain_run = jaxgen.load(tmp_path / "teacher")[1]
    for path, leaf in tree.flatten(one).items():
        np.testing.assert_array_equal(leaf, tree.flatten(two)[path])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (one, plain_run)), strict=True))
    assert '"divergence"' in (tmp_path / "whole" / "metrics.jsonl").read_text()
    (tmp_path / "again" / "teacher.json").write_text('{"sha256": "another"}')
    with pytest.raises(ConfigError, match="is not the model that the run began with"):
        training.resume(tmp_path / "again", ["train.steps=8"], cache=cache)


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


def test_a_teacher_of_another_kind_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five six seven. " * 200)
    config = jaxgen.ModelConfig(vocab_size=260, context=16, layers=1, d_model=16, heads=2)
    from jaxgen.tokens import train as train_tokenizer
    from jaxgen.tokens.settings import TokenizerSettings

    tokenizer = train_tokenizer(TokenizerSettings(kind="bytes"), ())
    params = jaxgen.init(config, jax.random.key(0))
    jaxgen.save(tmp_path / "short", config, params, tokenizer=tokenizer)
    settings = settings_of(tmp_path, distill={"teacher": str(tmp_path / "short")})
    with pytest.raises(ConfigError, match="has a context of 16, shorter than"):
        training.train(settings, tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"don't go with distill\.teacher"):
        more = {"steps": 6, "batch": 4, "smoothing": 0.1}
        settings_of(tmp_path, distill={"teacher": str(tmp_path / "short")}, train=more)

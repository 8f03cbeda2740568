"""Losses of distillation equal those of torch.nn.functional, and of TRL where mixtures lean."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.train.distill import attention_distance, divergence, hidden_distance, log_probs

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergences(kind, temperature):
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 7, 50)).astype("float32") * 3
    s, t = (F.log_softmax(torch.from_numpy(x) / temperature, -1) for x in (student, teacher))
    if kind == "forward":
        want = F.kl_div(s, t, reduction="none", log_target=True).sum(-1)
    elif kind == "reverse":
        want = F.kl_div(t, s, reduction="none", log_target=True).sum(-1)
    else:
        m = torch.logaddexp(s, t) - np.log(2)
        both = (F.kl_div(m, x, reduction="none", log_target=True).sum(-1) for x in (s, t))
        want = sum(both) / 2
    ours = (log_probs(jnp.asarray(x), None, temperature) for x in (student, teacher))
    np.testing.assert_allclose(divergence(*ours, kind), want.numpy(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_leaning_mixtures(beta):
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 7, 50)).astype("float32") * 3
    labels = torch.arange(21).reshape(3, 7) % 4
    labels[0, :3] = -100
    asked = {"labels": labels, "beta": beta, "temperature": 2.0, "reduction": "sum"}
    want = trainer.generalized_jsd_loss(*map(torch.from_numpy, (student, teacher)), **asked)
    ours = (log_probs(jnp.asarray(x), None, 2.0) for x in (student, teacher))
    found = divergence(*ours, "jensen_shannon", beta)[np.asarray(labels) >= 0].sum()
    np.testing.assert_allclose(found, want.item(), rtol=1e-6)


def test_layers():
    rng = np.random.default_rng(0)
    own, other = (torch.from_numpy(x) for x in rng.normal(size=(2, 6, 32)).astype("float32"))
    want = F.cosine_embedding_loss(own, other, torch.ones(6), reduction="none")
    found = hidden_distance(*(jnp.asarray(x.numpy()) for x in (own, other)))
    np.testing.assert_allclose(found, want.numpy(), atol=1e-6)
    own, other = (torch.softmax(2 * x, -1) for x in (own, other))
    own[:, 20:], other[:, 20:] = 0, 0  # what a mask hides
    want = F.kl_div(own.log(), other, reduction="none").nan_to_num().sum(-1)
    found = attention_distance(*(jnp.asarray(x.numpy()) for x in (own, other)))
    np.testing.assert_allclose(found, want.numpy(), atol=1e-6, rtol=1e-6)

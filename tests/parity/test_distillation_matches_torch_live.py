"""Divergences of distillation equal those of torch.nn.functional."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.train.distill import divergence, log_probs

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

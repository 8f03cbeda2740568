"""Sums of clipped gradients of a tiny GPT-2 are opacus's own, where it is installed."""

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.models import api
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.train.private import CausalGhost, Private, gradients

torch = pytest.importorskip("torch")
opacus = pytest.importorskip("opacus")
transformers = pytest.importorskip("transformers")

SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 12}
CLIP, ROWS = 0.7, 5


def of_opacus(model, tokens, targets):
    """Set each parameter of the model to the sum of its clipped gradients over rows."""
    sampled = opacus.GradSampleModule(model, loss_reduction="sum")
    places = torch.arange(tokens.shape[1]).expand(tokens.shape)
    logits = sampled(input_ids=tokens, position_ids=places, use_cache=False).logits
    each = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    each.mean(dim=1).sum().backward()
    params = [p for p in model.parameters() if p.requires_grad]
    squares = sum(p.grad_sample.flatten(1).square().sum(1) for p in params)
    factors = (CLIP / squares.sqrt()).clamp(max=1.0)
    assert int((factors < 1).sum()) > 0
    for p in params:
        p.data = torch.einsum("b,b...->...", factors, p.grad_sample)
    sampled.to_standard_module()


def test_the_sum_of_clipped_gradients_is_that_of_opacus(tmp_path):
    torch.manual_seed(0)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    own = transformers.GPT2Config(**SIZES, **drops, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(own).train()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model.save_pretrained(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, 32, (ROWS, 13))
    of_opacus(model, torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:]))
    model.save_pretrained(tmp_path / "gradients")

    config, params = jaxgen.load(tmp_path / "model")
    _, wanted = jaxgen.load(tmp_path / "gradients")
    settings = PrivacySettings(
        noise_multiplier=1e-12, delta=1e-6, clip=CLIP, expected=float(ROWS), seed=1
    )
    batch = {"tokens": tokens[:, :-1].astype("i4"), "targets": tokens[:, 1:].astype("i4")}
    for ghost in (None, CausalGhost(lambda params, key: params, 0.0, 0.0, None)):
        private = Private(settings, tree.flatten(api.axes(config)), ghost=ghost)
        key, fixed = jax.random.key(0), {"accumulate": 1, "private": private}
        _, grads = gradients(jaxgen.causal_loss, params, config, batch, key, **fixed)
        for path, g in tree.flatten(grads).items():
            expected = np.asarray(tree.flatten(wanted)[path])
            np.testing.assert_allclose(ROWS * np.asarray(g), expected, atol=1e-6, err_msg=path)

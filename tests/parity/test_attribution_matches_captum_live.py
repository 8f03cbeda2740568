"""Attributions of a tiny GPT-2 are captum's on the same weights."""

import numpy as np
import pytest

import jaxgen
from jaxgen.explain import attribution
from jaxgen.explain.scores import token_scores

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
captum = pytest.importorskip("captum.attr")

TEXT = [3, 1, 4, 1, 5, 9, 2]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    config, params = jaxgen.load(folder)

    def forward(embeds):
        return model(inputs_embeds=embeds).logits[:, -1, TEXT[-1]]

    vectors = model.transformer.wte(torch.tensor([TEXT[:-1]])).detach()
    return forward, vectors, *token_scores(params, config, TEXT, measure="logit")


def of(reference):
    return reference.detach().sum(dim=-1)[0].numpy()


def test_gradient_x_input(both):
    forward, vectors, score, embeds = both
    wanted = of(captum.InputXGradient(forward).attribute(vectors.requires_grad_()))
    out = attribution.gradient_x_input(score, embeds)
    np.testing.assert_allclose(out.values[0], wanted, atol=1e-4)


def test_integrated_gradients(both):
    forward, vectors, score, embeds = both
    reference = captum.IntegratedGradients(forward)
    wanted = of(reference.attribute(vectors, n_steps=2000, internal_batch_size=100))
    out = attribution.integrated_gradients(score, embeds, tolerance=1e-5)
    np.testing.assert_allclose(out.values[0], wanted, atol=1e-4)


def test_occlusion_and_shapley_values(both):
    forward, vectors, score, embeds = both
    mask = torch.arange(vectors.shape[1])[None, :, None].expand_as(vectors).contiguous()
    for ours, theirs in (
        (attribution.occlusion, captum.FeatureAblation),
        (attribution.shapley, captum.ShapleyValues),
    ):
        with torch.no_grad():
            wanted = (
                theirs(forward)
                .attribute(vectors, feature_mask=mask, perturbations_per_eval=100)[0, :, 0]
                .numpy()
            )
        np.testing.assert_allclose(ours(score, embeds).values[0], wanted, atol=1e-4)

"""Folders of compressed-tensors: transformers has the logits that our quantised weights have."""

import numpy as np
import pytest

pytest.importorskip("compressed_tensors")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
from quantised_weights import RECIPES, quantise  # noqa: E402

import jaxgen  # noqa: E402

IDS = np.arange(24).reshape(2, 12)


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_opens_it(tmp_path, name):
    config = jaxgen.ModelConfig(
        vocab_size=64, context=32, layers=1, d_model=64, heads=2, d_ff=64, norm="rms",
        positions="rope", feed="swiglu", biases="none", output="untied",
    )  # fmt: skip
    params = quantise(config, jaxgen.init(config, jax.random.key(0)), name)
    jaxgen.save(tmp_path / "hub", config, params, layout="hf")
    # Of zero points that stay packed, version 0.20 expects another shape than it writes itself.
    options = transformers.utils.quantization_config.CompressedTensorsConfig(dequantize=True)
    more = {"quantization_config": options} if "zeros" in name else {}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hub", dtype=torch.float32, **more
    )
    with torch.no_grad():
        logits = theirs(torch.tensor(IDS)).logits.numpy()
    ours = np.asarray(jaxgen.apply(params, config, IDS).logits)
    # Where inputs are rounded, torch has another scale for them: 1 / 127.5 of the largest.
    near, size = 1e-2 if name == "w8a8" else 2e-5, np.abs(logits).max()
    np.testing.assert_allclose(ours, logits, atol=near * size)
    scheme = getattr(theirs.model.layers[0].mlp.up_proj, "quantization_scheme", None)
    assert bool(scheme and scheme.input_activations) == (name == "w8a8")

"""The golden files are what the installed transformers computes; what we write, it opens."""

import os

import jax
import numpy as np
import parity_cases as cases
import pytest

import jaxgen
from jaxgen import settings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": cases.V, "context": 32, "layers": 2, "d_model": 16, "heads": 4}
LLAMA = SHAPE | {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none"}
SCALING = {"kind": "llama3", "factor": 8.0, "original_context": 16}
MODELS = {
    "gpt2": SHAPE,
    "llama": LLAMA | {"kv_heads": 2, "output": "untied", "rope_scaling": SCALING},
    "gemma3_text": LLAMA
    | {"norm": "rms_offset", "norm_at": "both", "feed": "geglu", "embed_scale": "root"}
    | {"qk_norm": "head", "pattern": ("local", "global"), "window": 5, "rope_theta_local": 1e3},
}


@pytest.mark.parametrize("family", cases.CASES)
def test_golden_files_are_what_transformers_computes(family):
    from make_golden_models import outputs

    golden = cases.read(family)
    for name, given in cases.CASES[family].items():
        for what, array in outputs(family, given).items():
            if what != "about":
                np.testing.assert_allclose(array, golden[f"{name}/{what}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", MODELS)
def test_transformers_opens_what_we_write_and_computes_the_same(family, tmp_path):
    config = settings.build(jaxgen.ModelConfig, MODELS[family])
    params = jaxgen.init(config, jax.random.key(1))
    jaxgen.save(tmp_path / "hub", config, params, layout="hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub").eval()
    assert model.config.model_type == family
    with torch.no_grad():
        theirs = model(torch.from_numpy(cases.TOKENS)).logits.numpy()
    np.testing.assert_allclose(
        jaxgen.apply(params, config, cases.TOKENS).logits, theirs, atol=1e-4, rtol=0
    )

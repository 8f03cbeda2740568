"""Dynamic rotary scaling is that of transformers: within its context, beyond it, in steps."""

import json

import jax.numpy as jnp
import numpy as np
import published
import pytest
from test_published_folders_live import computed, opened, rewrite, saved

import jaxgen

torch = pytest.importorskip("torch")

BEFORE = published.LLAMA["max_position_embeddings"]
IDS = np.random.RandomState(0).randint(5, published.V, (1, BEFORE + 12))


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "Qwen3ForCausalLM"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dynamic")
    saved(folder, request.param, published.GEMMA)
    rewrite(folder, {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}})
    config, params = jaxgen.load(folder)
    return opened(folder, request.param), config.replace(context=IDS.shape[1]), params


@pytest.mark.parametrize("length", [BEFORE - 1, BEFORE, BEFORE + 1, IDS.shape[1]])
def test_texts_of_all_lengths_are_computed_alike(both, length):
    model, config, params = both
    logits = jaxgen.apply(params, config, IDS[:, :length]).logits
    np.testing.assert_allclose(logits, computed(model, IDS[:, :length]), atol=2e-4, rtol=0)
    plain = config.replace(rope_scaling=jaxgen.config.RopeScaling())
    other = jaxgen.apply(params, plain, IDS[:, :length]).logits
    assert np.allclose(logits, other, atol=1e-5) == (length <= BEFORE)


def test_steps_beyond_the_context_are_computed_alike(both):
    model, config, params = both
    begun = BEFORE - 2
    cache = jaxgen.empty_cache(config, 1, IDS.shape[1])
    out = jaxgen.apply(params, config, IDS[:, :begun], cache=cache)
    with torch.no_grad():
        theirs = model(torch.from_numpy(IDS[:, :begun]), use_cache=True)
        for at in range(begun, IDS.shape[1]):
            token = IDS[:, at : at + 1]
            out = jaxgen.apply(params, config, jnp.asarray(token), cache=out.cache)
            kept = theirs.past_key_values
            theirs = model(torch.from_numpy(token), past_key_values=kept, use_cache=True)
            np.testing.assert_allclose(out.logits, theirs.logits.numpy(), atol=3e-4, rtol=0)


def test_a_folder_keeps_it(both, tmp_path):
    _, config, params = both
    jaxgen.save(tmp_path / "hub", config.replace(context=BEFORE), params, layout="hf")
    told = json.loads((tmp_path / "hub/config.json").read_bytes())
    assert told["rope_scaling"] == {"rope_type": "dynamic", "factor": 3.0}
    assert jaxgen.load(tmp_path / "hub")[0] == config.replace(context=BEFORE)
    with pytest.raises(jaxgen.errors.ConfigError, match=r"rope\.scaling"):
        jaxgen.save(tmp_path / "longer", config, params, layout="hf")

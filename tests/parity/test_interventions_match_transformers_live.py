"""Changed activations and vectors as inputs, as transformers' own hooks and argument have them."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 8, "n_layer": 3, "n_head": 2}
    config = transformers.GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, *jaxgen.load(folder)


def logits_of(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(("part", "path"), [("", "out"), ("attn", "attn_out"), ("mlp", "feed_out")])
def test_a_vector_added_at_a_layer_is_a_forward_hook(both, part, path, layer):
    model, config, params = both
    vector = np.linspace(-2, 2, 8, dtype=np.float32)

    def hook(module, args, out):
        added = torch.from_numpy(vector)
        return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

    block = model.transformer.h[layer]
    handle = (getattr(block, part) if part else block).register_forward_hook(hook)
    wanted = logits_of(model, input_ids=torch.from_numpy(TOKENS))
    handle.remove()

    def add(x, number):
        return jnp.where(number == layer, x + vector, x)

    found = jaxgen.apply(params, config, TOKENS, interventions={f"layers/{path}": add}).logits
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    plain = logits_of(model, input_ids=torch.from_numpy(TOKENS))
    assert np.abs(wanted - plain).max() > 0.01


def test_inputs_embeds_are_those_of_transformers(both):
    model, config, params = both
    vectors = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    wanted = logits_of(model, inputs_embeds=torch.from_numpy(vectors))
    found = jaxgen.apply(params, config, inputs_embeds=vectors).logits
    np.testing.assert_allclose(found, wanted, atol=2e-5)

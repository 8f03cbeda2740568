"""DoLa's contrast of layers against golden outputs of transformers, each request by itself."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen.decoding.chain import greedy
from jaxgen.decoding.combined_steps import contrast

GOLDEN = dict(np.load(Path(__file__).with_name("golden_dola.npz")))


def test_contrasted_logits_are_those_of_transformers():
    for number in (1, 4):
        found = jax.jit(contrast)(GOLDEN["logits"], GOLDEN["early"][:number])
        np.testing.assert_allclose(found, GOLDEN[f"outputs/{number}"], rtol=1e-5, atol=1e-5)


def test_a_step_of_layers_decodes_as_its_contrast_says():
    tables = jax.random.normal(jax.random.key(0), (3, 7, 7)) * 2

    def step(tokens, cache):
        return tables[0, tokens], tables[1:, tokens], cache

    first = jnp.array([1, 5])
    both = jaxgen.layer_contrast(step)
    found, _ = jaxgen.decode(both, (), first, jax.random.key(0), greedy(), 4)
    for row, token in enumerate(first.tolist()):
        for wanted in found[row].tolist():
            alone = contrast(tables[0, token][None], tables[1:, token][:, None])
            assert int(alone.argmax()) == wanted
            token = wanted

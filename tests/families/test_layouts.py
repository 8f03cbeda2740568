"""Tensors of published models that hold several parameters, or axes of ours in another order."""

import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.weights import fill, table

SHAPE = {"vocab_size": 7, "context": 8, "layers": 1, "d_model": 12, "heads": 6, "norm": "layer"}
ROPE = SHAPE | {"positions": "rope", "feed": "gelu", "biases": "norms"}
HEADS = range(6)
# (family, config, tensor, its rows by (parameter, head)): as the authors' code cuts it.
FUSED = {
    "each head's query, key and value": (
        "gpt_neox",
        ROPE | {"biases": "all", "parallel": "two_norms"},
        "gpt_neox.layers.0.attention.query_key_value.weight",
        [(name, head) for head in HEADS for name in "qkv"],
    ),
    "each key head's queries, then itself": (
        "falcon",
        ROPE | {"kv_heads": 2, "parallel": "two_norms"},
        "transformer.h.0.self_attention.query_key_value.weight",
        [
            *[("q", 0), ("q", 1), ("q", 2), ("k", 0), ("v", 0)],
            *[("q", 3), ("q", 4), ("q", 5), ("k", 1), ("v", 1)],
        ],
    ),
    "all queries, then one key and one value": (
        "falcon",
        ROPE | {"kv_heads": 1, "parallel": "one_norm"},
        "transformer.h.0.self_attention.query_key_value.weight",
        [*(("q", i) for i in HEADS), ("k", 0), ("v", 0)],
    ),
    "all queries, all keys, all values": (
        "mpt",
        SHAPE | {"positions": "alibi", "feed": "gelu", "biases": "none"},
        "transformer.blocks.0.attn.Wqkv.weight",
        [(name, head) for name in "qkv" for head in HEADS],
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections_are_cut_as_their_authors_do(name):
    model_type, fields, tensor, wanted = FUSED[name]
    config = jaxgen.ModelConfig(**fields)
    rng = np.random.default_rng(0)
    shapes = tree.flatten(jaxgen.abstract(config))
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    theirs = table(FAMILIES[model_type], config)[tensor]
    filled = fill(theirs, flat, np.dtype(np.float32))
    rows = [flat[f"layers/attn/{part}"][0][:, head].T for part, head in wanted]  # each [H, D]
    np.testing.assert_array_equal(filled, np.concatenate(rows))
    for link in theirs.links:
        np.testing.assert_array_equal(link.read(filled), flat[link.path][0])

"""Families with experts: their files come back bit for bit, under the names of published ones."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.store import safetensors

BASE = jaxgen.ModelConfig(
    vocab_size=32, context=16, layers=2, d_model=8, heads=2, d_ff=12, norm="rms", positions="rope",
    feed="swiglu", biases="none", output="untied", head_dim=4,
)  # fmt: skip
EXPERTS = jaxgen.Experts(number=4, active=2)
APART = "model.layers.1.mlp.experts.3.up_proj.weight"
# The config of each, and a tensor that its published files have.
FAMILIES = {
    "mixtral": (BASE, EXPERTS, "model.layers.1.block_sparse_moe.experts.3.w3.weight"),
    "qwen2_moe": (
        BASE.replace(biases="qkv"),
        jaxgen.Experts(number=4, shared=6, shared_gate="sigmoid", normalise="all", d_ff=5),
        "model.layers.0.mlp.shared_expert_gate.weight",
    ),
    "qwen3_moe": (BASE.replace(qk_norm="head"), EXPERTS, APART),
    "olmoe": (BASE.replace(qk_norm="heads"), EXPERTS, APART),
    "gpt_oss": (
        BASE.replace(biases="all", feed="swiglu_clamped", scores=jaxgen.Scores(sinks="learned")),
        jaxgen.Experts(number=4, router_bias="bias"),
        "model.layers.1.mlp.experts.gate_up_proj",
    ),
    "granitemoe": (
        BASE.replace(scores=jaxgen.Scores(multiplier=0.3)),
        EXPERTS,
        "model.layers.1.block_sparse_moe.input_linear.weight",
    ),
    "glm4_moe": (
        BASE.replace(rope=jaxgen.Rope(share=0.5)),
        jaxgen.Experts(
            number=4, first_dense=1, shared=12, router="sigmoid", choice_bias="bias", groups=2,
            active_groups=2, scale=2.0,
        ),
        "model.layers.1.mlp.gate.e_score_correction_bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_from_the_files_of_its_family(family, tmp_path):
    base, experts, name = FAMILIES[family]
    config = base.replace(experts=experts)
    shapes = tree.flatten(jaxgen.abstract(config))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        path: jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, (path, leaf) in zip(keys, shapes.items(), strict=True)
    }
    jaxgen.save(tmp_path / "model", config, tree.unflatten(params), layout="hf", family=family)
    assert name in safetensors.open_file(tmp_path / "model" / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, back = jaxgen.load(tmp_path / "model")
    assert again.experts.number == 4 and again.experts.router == experts.router
    found = tree.flatten(back)
    assert found.keys() == params.keys()
    assert all(bool(jnp.array_equal(found[path], leaf)) for path, leaf in params.items())

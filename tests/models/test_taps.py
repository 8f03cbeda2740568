"""Attention probabilities, heads and neurons as taps: their sums are the layers' own outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen

SIZES = {"vocab_size": 19, "context": 16, "layers": 3, "d_model": 8, "heads": 4, "head_dim": 4}
WIRINGS = {
    "grouped": {"kv_heads": 2, "positions": "rope", "feed": "swiglu", "norm": "rms"},
    "pattern": {"pattern": ("local", "global"), "window": 2, "biases": "all"},
    "sinks": {"scores": jaxgen.Scores(sinks="learned", cap=5.0), "remat": "full"},
    "two towers": {"topology": "encoder_decoder", "positions": "relative"},
}
TOKENS = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]])
SOURCE = jnp.array([[3, 1, 4], [1, 5, 9]])


def run(config, params, **options):
    memory = None
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, SOURCE)
    return jaxgen.apply(params, config, TOKENS, memory=memory, **options)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_heads_and_neurons_make_what_their_layer_adds(wiring):
    config = jaxgen.ModelConfig(**SIZES, **WIRINGS[wiring])
    params = random_params(config)
    taps = run(config, params, taps=("*",)).taps
    stacks = [path.removesuffix("/attn/probs") for path in taps if path.endswith("/attn/probs")]
    assert stacks
    for stack in stacks:
        own = params
        for name in stack.split("/"):
            own = own[name]
        here = {path.removeprefix(f"{stack}/"): taps[path] for path in taps if stack in path}
        if stack.startswith("rest"):  # no L axis
            own, here = jax.tree.map(lambda x: x[None], (own, here))
        for name in ("attn", "cross") if "cross" in own else ("attn",):
            probs, values = here[f"{name}/probs"], here[f"{name}/values"]
            sums = probs.sum(axis=-1)
            if config.scores.sinks == "none":
                np.testing.assert_allclose(sums, 1, rtol=1e-5)
            else:
                assert (sums < 1).all()
            wide = jnp.repeat(values, config.heads // values.shape[-2], axis=-2)
            heads = jnp.einsum("LBNTS,LBSNH->LBTNH", probs, wide)
            np.testing.assert_allclose(here[f"{name}/heads"], heads, rtol=1e-5, atol=1e-6)
            added = jnp.einsum("LBTNH,LNHD->LBTD", heads, own[name]["o"])
            added += own[name].get("o_bias", jnp.zeros(1))[:, None, None]
            np.testing.assert_allclose(here[f"{name}_out"], added, rtol=2e-5, atol=1e-5)
        added = jnp.einsum("LBTF,LFD->LBTD", here["feed/neurons"], own["feed"]["down"])
        added += own["feed"].get("down_bias", jnp.zeros(1))[:, None, None]
        np.testing.assert_allclose(here["feed_out"], added, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("wiring", ["grouped", "two towers"])
def test_changed_probabilities_and_heads_change_what_follows(wiring):
    config = jaxgen.ModelConfig(**SIZES, **WIRINGS[wiring])
    params = random_params(config)
    plain = run(config, params, taps=("*",))
    same = run(config, params, interventions={"layers/attn/probs": lambda x, layer: x})
    np.testing.assert_allclose(same.logits, plain.logits, rtol=1e-5, atol=1e-5)

    def first_only(probs, layer):  # every query attends to the first key alone
        first = jnp.zeros_like(probs).at[..., 0].set(1.0)
        return jnp.where(layer == 1, first, probs)

    def double_first(values, layer):
        return jnp.where(layer == 0, 2 * values, values)

    for part in (f"layers/{name}" for name in ("attn", "cross") if name in params["layers"]):
        changes = {f"{part}/probs": first_only, f"{part}/values": double_first}
        taps = run(config, params, interventions=changes, taps=("*",)).taps
        once = plain.taps[f"{part}/heads"][0]
        np.testing.assert_allclose(taps[f"{part}/heads"][0], 2 * once, rtol=1e-5, atol=1e-6)
        first = jnp.repeat(taps[f"{part}/values"][1][:, :1], TOKENS.shape[1], axis=1)
        wide = jnp.repeat(first, config.heads // first.shape[-2], axis=-2)
        np.testing.assert_allclose(taps[f"{part}/heads"][1], wide, rtol=1e-6, atol=1e-6)
    off = dict.fromkeys(("layers/attn/heads", "layers/feed/neurons"), lambda x, layer: 0 * x)
    zero = run(config, params, interventions=off, taps=("*",)).taps
    for added in (zero["layers/attn_out"], zero["layers/feed_out"]):
        assert (added == added[:, :1, :1]).all()  # only the bias is left


def test_taps_go_through_jit_vmap_and_grad_and_cost_nothing_unless_asked_for():
    config = jaxgen.ModelConfig(**SIZES, **WIRINGS["grouped"])
    params = random_params(config)

    def probs(embeds):
        return jaxgen.apply(params, config, inputs_embeds=embeds, taps=("layers/attn/probs",)).taps[
            "layers/attn/probs"
        ]

    embeds = params["embed"]["tokens"][TOKENS]
    whole = probs(embeds)
    rows = jax.jit(jax.vmap(lambda row: probs(row[None])[:, 0]))(embeds)
    np.testing.assert_allclose(rows.swapaxes(0, 1), whole, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda row: probs(row)[2, 0, 1, 4, 0])(embeds)
    assert (slope[0] != 0).any() and (slope[1] == 0).all()

    def products(**options):
        program = jax.make_jaxpr(lambda tokens: jaxgen.apply(params, config, tokens, **options))
        return str(program(TOKENS)).count("dot_general")

    assert products() < products(taps=("layers/out",))  # probabilities are not even traced

    def flops(*taps):
        program = jax.jit(lambda tokens: jaxgen.apply(params, config, tokens, taps=taps).taps)
        return program.lower(TOKENS).compile().cost_analysis()["flops"]

    assert flops("layers/out") < flops("layers/out", "layers/attn/probs")

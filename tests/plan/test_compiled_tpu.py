"""What only the compiler for TPUs can say; it needs libtpu (the extra [tpu]) and no TPU."""

import os

import jax
import jax.numpy as jnp
import pytest

from jaxgen.mesh import make as meshes
from jaxgen.mesh import place
from jaxgen.ops import attention
from jaxgen.ops.masks import sight
from jaxgen.plan import analytic, chips, compiled, tpu
from jaxgen.run.settings import build_settings

pytestmark = pytest.mark.skipif(
    not (tpu.installed() and os.environ.get("JAXGEN_NIGHTLY")),
    reason="needs libtpu, and minutes: JAXGEN_NIGHTLY=1",
)
MESHES = {"v5e:1x1": (1, 1, 1, 1), "v5p:2x2x1": (1, 1, 2, 2), "v6e:2x2": (2, 1, 2, 1)}
LOOKS = {
    "causal, heads of 64": {"width": 64},
    "window, soft cap": {"window": 300, "cap": 50.0},
    "both sides": {"direction": "both"},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("topology", MESHES)
def test_the_kernel_compiles_with_its_gradient_for_every_mask_and_mesh(topology, look):
    mesh = meshes.lay(MESHES[topology], tpu.devices(topology))
    options = {"width": 128, "window": None, "cap": None, "direction": "back"} | LOOKS[look]
    B, T, N, K, H = 4, 1024, 8, 2, options["width"]

    def shape(dims, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=place.batch_sharding(mesh, dims[:1]))

    def loss(q, k, v, ids):
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        words = {"direction": options["direction"], "window": options["window"], "ahead": None}
        words |= {"order": "running", "query_segments": ids, "key_segments": ids}
        seen = sight(positions, positions, **words)
        q, k, v = place.constrain(q, "BTNH"), place.constrain(k, "BSKH"), place.constrain(v, "BSKH")
        out = attention.attend(q, k, v, seen, scale=0.1, cap=options["cap"])
        return jnp.sum(out.astype(jnp.float32) ** 2)

    if options["direction"] == "both" and MESHES[topology][3] > 1:
        pytest.skip("left to plain attention: tests/ops/test_attention_ways.py")
    arguments = [shape((B, T, heads, H)) for heads in (N, K, K)] + [shape((B, T), "int32")]
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()
    assert text.count("custom-call(") >= 3 and "tpu_custom_call" in text  # forward, dq, dkv
    assert f"{T},{T}]" not in text  # no scores are held


def test_the_plan_is_close_to_the_compiler_in_state_and_weights_are_not_kept():
    sizes = {"vocab_size": 2048, "context": 512, "layers": 16, "d_model": 512, "heads": 4}
    model = sizes | {"compute_dtype": "bfloat16", "feed": "swiglu", "norm": "rms", "biases": "none"}
    settings = build_settings(
        {"model": model, "train": {"batch": 4, "warmup": 0}, "mesh": "fsdp:4"}
    )
    plan = analytic.make(settings, *chips.parse("v5p:2x2x1"))
    found = compiled.training(settings, tpu.devices("v5p:2x2x1"))
    assert plan.state == pytest.approx(found.state, rel=0.05)
    # Gathered weights kept from forward to backward would add a third.
    assert found.temporary == pytest.approx(plan.total - plan.state, rel=0.1)
    gathered = plan.traffic["all-gather of weights (fsdp)"]
    assert found.traffic["all-gather"] == pytest.approx(gathered, rel=0.1)
    decoding = compiled.decoding(settings, tpu.devices("v5p:2x2x1"))
    assert decoding is not None and decoding.state == pytest.approx(plan.cache, rel=0.05)

"""What only the compiler for NVIDIA GPUs can say; it needs the extra [cuda] and no GPU."""

import jax
import jax.numpy as jnp
import pytest

from jaxgen.mesh import make as meshes
from jaxgen.mesh import place
from jaxgen.ops import attention
from jaxgen.ops.masks import sight
from jaxgen.plan import analytic, chips, compiled, gpu
from jaxgen.run.settings import build_settings

pytestmark = pytest.mark.skipif(not gpu.installed(), reason="needs JAX's CUDA plugin and cuDNN")
MESHES = {"h200:1": (1, 1, 1, 1), "h100:4": (2, 1, 2, 1)}
LOOKS = {
    "causal": {},
    "window": {"window": 300},
    "both sides": {"direction": "both"},
    "packed": {"packed": True},
    "packed, window": {"packed": True, "window": 300},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("topology", MESHES)
def test_cudnn_attention_compiles_with_its_gradient_for_every_mask_and_mesh(topology, look):
    mesh = meshes.lay(MESHES[topology], gpu.devices(topology))
    options = {"window": None, "direction": "back", "packed": False} | LOOKS[look]
    B, T, N, K, H = 4, 1024, 8, 2, 64

    def shape(dims, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=place.batch_sharding(mesh, dims[:1]))

    def loss(q, k, v, ids):
        ids = ids if options["packed"] else None
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        words = {"direction": options["direction"], "window": options["window"], "ahead": None}
        words |= {"order": "running", "query_segments": ids, "key_segments": ids}
        seen = sight(positions, positions, **words)
        q, k, v = place.constrain(q, "BTNH"), place.constrain(k, "BSKH"), place.constrain(v, "BSKH")
        out = attention.attend(q, k, v, seen, scale=0.1, cap=None)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    arguments = [shape((B, T, heads, H)) for heads in (N, K, K)] + [shape((B, T), "int32")]
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()
    assert text.count("__cudnn$fmha") == 2  # forward and backward
    assert f"{N // mesh.shape['tensor']},{T},{T}]" not in text  # no head's scores are held


def test_the_plan_of_a_gpu_is_close_to_its_compiler_in_state_and_weights_are_not_kept():
    sizes = {"vocab_size": 2048, "context": 512, "layers": 16, "d_model": 512, "heads": 4}
    model = sizes | {"compute_dtype": "bfloat16", "feed": "swiglu", "norm": "rms", "biases": "none"}
    settings = build_settings(
        {"model": model, "train": {"batch": 4, "warmup": 0}, "mesh": "fsdp:4"}
    )
    plan = analytic.make(settings, *chips.parse("h200:4"))
    found = compiled.training(settings, gpu.devices("h200:4"))
    assert plan.state == pytest.approx(found.state, rel=0.05)
    assert found.temporary == pytest.approx(plan.total - plan.state, rel=0.15)
    gathered = plan.traffic["all-gather of weights (fsdp)"]
    assert found.traffic["all-gather"] == pytest.approx(gathered, rel=0.02)
    scattered = plan.traffic["reduce-scatter of gradients (fsdp)"]
    assert found.traffic["reduce-scatter"] == pytest.approx(scattered, rel=0.02)
    decoding = compiled.decoding(settings, gpu.devices("h200:4"))
    assert decoding is not None and decoding.state == pytest.approx(plan.cache, rel=0.05)


def test_more_gpus_than_a_machine_holds_are_laid_out_in_machines_of_one_size():
    assert len(gpu.devices("h200:24")) == 24
    assert len({device.process_index for device in gpu.devices("h200:24")}) == 3
    assert len({device.process_index for device in gpu.devices("h200:12")}) == 2

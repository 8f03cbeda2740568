"""What only the compiler for NVIDIA GPUs can say; it needs the extra [cuda] and no GPU."""

from functools import partial

import ahead
import as_users
import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxgen
from jaxgen.mesh import device_mesh
from jaxgen.models import api, serving
from jaxgen.plan import compiled, gpu, roofline
from jaxgen.profile import chips, program
from jaxgen.run.settings import build_settings

pytestmark = pytest.mark.skipif(not gpu.installed(), reason="needs JAX's CUDA plugin and cuDNN")
MESHES = {"h200:1": (1, 1, 1, 1, 1), "h100:4": (2, 1, 1, 2, 1)}  # data, fsdp, expert, ...
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
    mesh = device_mesh.mesh_of_sizes(MESHES[topology], gpu.devices(topology))
    text = ahead.attention_text(mesh, width=64, **{"packed": False} | LOOKS[look])
    assert text.count("__cudnn$fmha") == 2  # forward and backward
    heads = ahead.N // mesh.shape["tensor"]
    assert f"{heads},{ahead.T},{ahead.T}]" not in text  # no head's scores are held


def test_the_plan_of_a_gpu_is_close_to_its_compiler_in_state_and_weights_are_not_kept():
    plan, found, decoding = ahead.planned("h200:4", gpu.devices("h200:4"))
    assert plan.state == pytest.approx(found.state, rel=0.05)
    assert found.temporary == pytest.approx(plan.total - plan.state, rel=0.15)
    gathered = plan.traffic["all-gather of weights (fsdp)"]
    assert found.traffic["all-gather"] == pytest.approx(gathered, rel=0.02)
    scattered = plan.traffic["reduce-scatter of gradients (fsdp)"]
    assert found.traffic["reduce-scatter"] == pytest.approx(scattered, rel=0.02)
    assert decoding is not None and decoding.state == pytest.approx(plan.cache, rel=0.05)


@pytest.mark.parametrize("mesh", ["sequence:4", "tensor:4", "data:2,tensor:2", "data:4"])
def test_a_step_of_training_compiles_on_every_mesh(mesh):
    model = LLAMA | {"biases": "none", "compute_dtype": "bfloat16"}
    settings = build_settings({"model": model, "train": {"batch": 8, "warmup": 0}, "mesh": mesh})
    found = compiled.training(settings, gpu.devices("h200:4"))
    assert found.temporary and found.traffic


def test_more_gpus_than_a_machine_holds_are_laid_out_in_machines_of_one_size():
    assert len(gpu.devices("h200:24")) == 24
    assert len({device.process_index for device in gpu.devices("h200:24")}) == 3
    assert len({device.process_index for device in gpu.devices("h200:12")}) == 2


SMALL = {"vocab_size": 4096, "context": 256, "layers": 4, "d_model": 512, "heads": 8}
LLAMA = SMALL | {"kv_heads": 2, "feed": "swiglu", "norm": "rms", "positions": "rope"}
FORMS = {
    "GPT-2": SMALL,
    "Llama": LLAMA | {"biases": "none"},
    "window": LLAMA | {"biases": "none", "window": 64, "pattern": ("local", "global")},
}


def placed(tree, mesh):
    where = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_decoding_on_a_gpu_reads_each_weight_once_and_copies_no_cache(form, rows):
    config = jaxgen.ModelConfig(**FORMS[form], compute_dtype="bfloat16")
    mesh = device_mesh.mesh_of_sizes((1, 1, 1, 1, 1), gpu.devices("h200:1"))
    with jax.set_mesh(mesh):
        params = jax.eval_shape(partial(serving.ready, config=config), api.abstract(config))
        prompt = jax.ShapeDtypeStruct((rows, 120), "int32")
        key = jax.eval_shape(lambda: jax.random.key(0))
        run = jax.jit(partial(jaxgen.generate, config=config, length=8))
        params, prompt, key = placed((params, prompt, key), mesh)
        lowered = run.lower(params, prompt=prompt, key=key)
        text = program.parse(as_users.compile(lowered).as_text())
    loops = [one for one in text.computations[text.entry].values() if one.opcode == "while"]
    bodies = [text.computations[name] for one in loops for name, _ in text._called(one)]
    lines = max(bodies, key=len)  # the loop over tokens
    names = [name for name, one in lines.items() if one.opcode not in program.FREE]
    read = sum(one.bytes for one in text.operations(names).values())
    weights = 2 * sum(x.size for x in jax.tree.leaves(params))
    slots = rows * 128 * config.K * config.H * 2  # bytes of a layer's keys
    # Beside the weights, activations, and twice what is cached.
    assert weights < read < (1.1 if rows == 1 else 1.3) * weights + 2 * 2 * slots * config.layers
    moved = [n for n, one in lines.items() if "copy" in n or "transpose" in n if one.size >= slots]
    assert not moved


@pytest.mark.parametrize("form", FORMS)
def test_a_training_step_on_a_gpu_copies_nothing_that_it_saves(form):
    model = FORMS[form] | {"compute_dtype": "bfloat16"}
    settings = build_settings(
        {
            "model": model | {"pattern": list(model.get("pattern", ["global"]))},
            "train": {"batch": 32, "warmup": 0},
        }
    )
    moves = [
        one
        for one in work(compiled.training(settings, gpu.devices("h200:1")))
        if one.operation.path.endswith(("dynamic_update_slice", "dynamic_slice", "scatter"))
    ]
    # All but chunks of the loss, whose gradients are put together, and rows of the token table.
    assert all(one.operation.line.startswith(("ops/losses.py", "ops/contract.py")) for one in moves)


def work(program):
    return roofline.work(program.text, chips.CHIPS["h200"])

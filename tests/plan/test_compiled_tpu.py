"""What only the compiler for TPUs can say; it needs libtpu (the extra [tpu]) and no TPU."""

import os

import ahead
import pytest

from jaxgen.mesh import device_mesh
from jaxgen.plan import tpu

pytestmark = pytest.mark.skipif(
    not (tpu.installed() and os.environ.get("JAXGEN_NIGHTLY")),
    reason="needs libtpu, and minutes: JAXGEN_NIGHTLY=1",
)
# By axes: data, fsdp, expert, tensor, sequence.
MESHES = {"v5e:1x1": (1, 1, 1, 1, 1), "v5p:2x2x1": (1, 1, 1, 2, 2), "v6e:2x2": (2, 1, 1, 2, 1)}
LOOKS = {
    "causal, heads of 64": {"width": 64},
    "window, soft cap": {"window": 300, "cap": 50.0},
    "both sides": {"direction": "both"},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("topology", MESHES)
def test_the_kernel_compiles_with_its_gradient_for_every_mask_and_mesh(topology, look):
    mesh = device_mesh.mesh_of_sizes(MESHES[topology], tpu.devices(topology))
    if LOOKS[look].get("direction") == "both" and MESHES[topology][4] > 1:
        pytest.skip("left to plain attention: tests/ops/test_attention_kernels.py")
    text = ahead.attention_text(mesh, **{"width": 128} | LOOKS[look])
    assert text.count("custom-call(") >= 3 and "tpu_custom_call" in text  # forward, dq, dkv
    assert f"{ahead.T},{ahead.T}]" not in text  # no scores are held


def test_rows_go_to_the_devices_of_their_experts_and_back():
    mesh = device_mesh.mesh_of_sizes((1, 1, 4, 1, 1), tpu.devices("v5e:2x2"))
    text = ahead.experts_text(mesh)
    assert text.count(" ragged-all-to-all(") == 4  # there and back, forward and backward
    assert "reduce-scatter" not in text


def test_the_plan_is_close_to_the_compiler_in_state_and_weights_are_not_kept():
    plan, found, decoding = ahead.planned("v5p:2x2x1", tpu.devices("v5p:2x2x1"))
    assert plan.state == pytest.approx(found.state, rel=0.05)
    # Gathered weights kept from forward to backward would add a third.
    assert found.temporary == pytest.approx(plan.total - plan.state, rel=0.1)
    gathered = plan.traffic["all-gather of weights (fsdp)"]
    assert found.traffic["all-gather"] == pytest.approx(gathered, rel=0.1)
    assert decoding is not None and decoding.state == pytest.approx(plan.cache, rel=0.05)

"""What an operation costs: shapes counted here against XLA's own analysis of the same program."""

import as_users
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxgen.errors import BusyError
from jaxgen.profile import program, report
from jaxgen.profile.trace import Ran


def compiled(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    made = as_users.compile(jax.jit(function).lower(*arrays))
    return program.parse(made.as_text()), made.cost_analysis()


def costs(found):
    return found.operations(sorted(found.names))


PRODUCTS = {
    "matrix": (lambda x, y: x @ y, (7, 5), (5, 3)),
    "heads": (lambda x, y: jnp.einsum("BTNH,BSNH->BNTS", x, y), (2, 3, 4, 5), (2, 6, 4, 5)),
    "strides": (
        lambda x, y: lax.conv_general_dilated(x, y, (2, 3), [(1, 2), (0, 3)]),
        (2, 3, 9, 8),
        (4, 3, 3, 2),
    ),
    "holes": (
        lambda x, y: lax.conv_general_dilated(
            x, y, (1,), [(1, 1)], lhs_dilation=(2,), rhs_dilation=(3,)
        ),
        (2, 3, 9),
        (4, 3, 3),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_flops_of_products_are_those_of_the_compiler(name):
    found, analysis = compiled(*PRODUCTS[name])
    known = costs(found)
    # What a fusion holds is counted with the fusion, not once more.
    inside = {n for body, lines in found.computations.items() if "fused" in body for n in lines}
    flops = sum(one.flops for n, one in known.items() if n not in inside)
    assert flops == analysis["flops"] > 0


def test_a_batched_product_as_a_tpu_convolves_it_counts_once():
    text = """
ENTRY %main (a: f32[4,8,16], b: f32[4,16,32]) -> f32[4,8,32] {
  %a = bf16[4,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4,16,32]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = f32[4,8,32]{2,1,0:T(8,128)} convolution(%a, %b), window={size=4 stride=3 \
pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf, metadata={op_name="jit(f)/layers/attn/dot_general" \
source_file="/home/me/jaxgen/nn/attend.py" source_line=9}
}
"""
    one = program.parse(text).operations(["convolution.1"])["convolution.1"]
    assert one.flops == 2 * 4 * 8 * 16 * 32 and one.dtype == "bf16"
    assert one.bytes == 2 * 4 * 8 * 16 + 2 * 4 * 16 * 32 + 4 * 4 * 8 * 32
    assert (one.path, one.note) == ("layers/attn/dot_general", "")
    assert one.line == "nn/attend.py:9"


@pytest.mark.parametrize("none", [0, 1])
def test_a_line_is_the_innermost_of_ours_that_not_every_product_passes(none):
    # XLA has counted the number of a frame's parent from 0 and from 1.
    text = f"""
FileNames
1 "/home/me/jaxgen/nn/feed.py"
2 "/home/me/jaxgen/ops/contract.py"
3 "/usr/lib/python3/site-packages/jax/numpy.py"

FunctionNames
1 "f"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=40 end_line=41}}
2 {{file_name_id=2 function_name_id=1 line=50 end_line=51}}
3 {{file_name_id=3 function_name_id=1 line=60 end_line=61}}

StackFrames
1 {{file_location_id=1 parent_frame_id={none}}}
2 {{file_location_id=2 parent_frame_id={none + 1}}}
3 {{file_location_id=3 parent_frame_id={none + 2}}}
4 {{file_location_id=3 parent_frame_id={none}}}

ENTRY %main (a: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} parameter(0)
  %sin.1 = f32[4]{{0}} sine(%a), metadata={{op_name="jit(f)/sin" stack_frame_id=3}}
  ROOT %cos.1 = f32[4]{{0}} cosine(%sin.1), metadata={{op_name="jit(f)/cos" stack_frame_id=4}}
}}
"""
    found = program.parse(text).operations(["sin.1", "cos.1"])
    assert found["sin.1"].line == "nn/feed.py:40"
    assert found["cos.1"].line == "jax/numpy.py:60"


def test_a_library_call_of_a_gpu_tells_its_product_by_its_configuration():
    text = """
ENTRY %main (a: f16[64,16], b: f16[16,32]) -> f16[64,32] {
  %a = f16[64,16]{1,0} parameter(0)
  %b = f16[16,32]{1,0} parameter(1)
  ROOT %cublas-gemm.1 = (f16[64,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", \
metadata={op_name="jit(f)/transpose(jvp(M))/while/body/out/dot"}, \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[]}}}
}
"""
    one = program.parse(text).operations(["cublas-gemm.1"])["cublas-gemm.1"]
    assert one.flops == 2 * 64 * 16 * 32 and one.dtype == "f16"
    assert (one.path, one.note) == ("out/dot", "backward")


def test_of_what_is_sliced_and_updated_only_the_part_is_moved():
    def step(stack, row, i):
        part = lax.dynamic_index_in_dim(stack, i, keepdims=False)
        return lax.dynamic_update_index_in_dim(stack, jnp.tanh(part) * row, i + 1, 0)

    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((50, 8), (8,))]
    index = jax.ShapeDtypeStruct((), jnp.int32)
    made = as_users.compile(jax.jit(step, donate_argnums=0).lower(*arrays, index))
    found = program.parse(made.as_text())
    entry = next(body for body in found.computations if body.startswith("main"))
    moved = sum(one.bytes for n, one in costs(found).items() if n in found.computations[entry])
    # The whole stack, 1600 bytes, is neither read nor written.
    assert moved == made.cost_analysis()["bytes accessed"] < 200


def test_a_report_holds_each_operation_against_its_nearer_limit():
    text = """
ENTRY %main (a: f32[100,100]) -> f32[100,100] {
  %a = f32[100,100]{1,0} parameter(0)
  %dot.1 = f32[100,100]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %add.1 = f32[100,100]{1,0} add(%dot.1, %a)
}
"""
    ran = [Ran("jit_f", "dot.1", "dot.1", 0.0, 4.0), Ran("jit_f", "add.1", "add.1", 4.0, 5.0)]
    ran += [Ran("jit_f", "dot.1", "dot.1", 5.0, 9.0), Ran("jit_f", "lost", "lost", 9.5, 10.0)]
    rates = {"bandwidth": 240_000.0, "f32": 1e6}
    found = report.summarize(ran, {"jit_f": program.parse(text)}, rates.__getitem__)
    rows = {row.name: row for row in found.rows}
    assert (found.seconds, found.idle, found.others) == (10.0, pytest.approx(0.05), 0)
    # 2 MFLOP at 1 MFLOP/s in 4 s; 3 x 40 kB at 240 kB/s in 1 s.
    assert rows["dot.1"][1:6] == (2, 8.0, 0.8, "products", pytest.approx(0.5))
    assert rows["add.1"][1:6] == (1, 1.0, 0.1, "bandwidth", pytest.approx(0.5))
    assert rows["lost"].bound == "" and rows["lost"].operation is None
    shown = report.lines(found, 2)
    assert shown[1].split()[:5] == ["80.0%", "1", "50%", "of", "products"]
    assert shown[-2] == "0 other operations 0.0%, none 5.0%"
    assert "0.001 GFLOP/s of float32" in shown[-1]


def test_a_conditional_of_any_name_counts_only_what_its_branches_leave():
    text = """
ENTRY %main (p: s32[], a: f32[4]) -> f32[4] {
  %p = s32[] parameter(0)
  %a = f32[4]{0} parameter(1)
  ROOT %cond.3.clone = f32[4]{0} conditional(%p, %a, %a), branch_computations={%b, %c}
}
"""
    ran = [Ran("m", "cond.3.clone", "k", 0.0, 10.0), Ran("m", "sine.1", "k", 1.0, 8.0)]
    found = report.summarize(ran, {"m": program.parse(text)}, lambda what: 1e9)
    assert [(row.name, row.seconds) for row in found.rows] == [
        ("sine.1", 7.0),
        ("cond.3.clone", 3.0),
    ]
    assert "(itself)" in report.lines(found, 1)[2]


def test_the_costliest_ten_come_first_and_the_rest_is_one_line():
    ran = [Ran("m", f"op.{n}", "k", 20.0 * n, 20.0 * n + n + 1) for n in range(13)]
    found = report.summarize(ran, {})
    assert [row.name for row in found.rows] == [f"op.{n}" for n in range(12, 2, -1)]
    assert found.others == 3 and found.rest == pytest.approx(6 / found.seconds)
    with pytest.raises(BusyError, match="no operation"):
        report.summarize([], {})


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        ('"mask_type": "NO_MASK", "sliding_window_length": 0', 8.0),
        ('"mask_type": "CAUSAL", "sliding_window_length": 0', 4.5),
        ('"mask_type": "CAUSAL", "sliding_window_length": 3', (1 + 2 + 6 * 3) / 8),
    ],
)
def test_attention_by_cudnn_counts_the_products_with_what_is_seen(look, seen):
    text = f"""
ENTRY %main (q: bf16[2,8,4,16], k: bf16[2,8,2,16]) -> bf16[2,4,8,16] {{
  %q = bf16[2,8,4,16]{{3,2,1,0}} parameter(0)
  %k = bf16[2,8,2,16]{{3,2,1,0}} parameter(1)
  %there = (bf16[2,4,8,16]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={{"cudnn_fmha_backend_config": {{{look}}}}}
  ROOT %back = (bf16[2,4,8,16]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={{"cudnn_fmha_backend_config": {{{look}}}}}
}}
"""
    found = program.parse(text).operations(["there", "back"])
    once = 2 * 2 * 4 * 8 * 16 * seen  # one product of all queries with what they see
    assert found["there"].flops == 2 * once and found["back"].flops == 5 * once
    assert found["there"].dtype == "bf16"


def test_a_fusion_that_slices_what_it_converts_reads_the_slice_and_one_that_converts_reads_all():
    text = """
%sliced (p: bf16[64,32], i: s32[]) -> f32[1,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %wide = f32[64,32]{1,0} convert(%p)
  ROOT %row = f32[1,32]{1,0} dynamic-slice(%wide, %i, %i), dynamic_slice_sizes={1,32}
}

%whole (q: bf16[64,32]) -> f32[64,32] {
  %q = bf16[64,32]{1,0} parameter(0)
  ROOT %all = f32[64,32]{1,0} convert(%q)
}

ENTRY %main (x: bf16[64,32], i: s32[]) -> f32[64,32] {
  %x = bf16[64,32]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %one = f32[1,32]{1,0} fusion(%x, %at), kind=kLoop, calls=%sliced
  ROOT %two = f32[64,32]{1,0} fusion(%x), kind=kLoop, calls=%whole
}
"""
    found = program.parse(text).operations(["one", "two"])
    assert found["one"].bytes == pytest.approx(2 * 32 + 4 + 4 * 32, abs=4)
    assert found["two"].bytes == (2 + 4) * 64 * 32


def test_a_device_is_its_own_chip_and_not_the_one_whose_name_begins_alike():
    from jaxgen.profile import chips

    kinds = {
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5e": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
    }
    assert {kind: chips.of_device(kind) for kind in kinds} == {
        kind: chips.CHIPS[name] for kind, name in kinds.items()
    }
    assert chips.of_device("cpu") is None and chips.of_device("TPU v7x") is None

"""The text of a compiled program says what is sent, loops counted as often as they turn."""

import pytest

from jaxgen.plan import hlo
from jaxgen.profile import program

PROGRAM = """HloModule jit_step, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %all-reduce.5 = bf16[64,8]{1,0} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %slice = bf16[16,8]{1,0} dynamic-slice(%all-reduce.5, %where)
}

%cond (p: (s32[], f32[16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %all-gather.1 = f32[1,16]{1,0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'b'}, dimensions={1}
  %fusion.1 = bf16[16,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}

%unread (p: (s32[], f32[16])) -> pred[] {
  ROOT %lt = pred[] fusion(%i), kind=kLoop, calls=%elsewhere
}

%told (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %all-to-all.1 = f32[16]{0} all-to-all(%x), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p0: f32[16]) -> f32[16] {
  %while.1 = (s32[], f32[16]) while(%init), condition=%cond, body=%body
  %all-reduce.9 = (f32[3]{0}, f32[1]{0}) all-reduce(%u, %v), replica_groups=[1,8]<=[8], to_apply=%sum
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%w), replica_groups={{0,1,2,3}}, dimensions={0}
  %both = ((f32[8]{0}, f32[8]{0}), (f32[2]{0}, f32[2]{0})) reduce-scatter-start(%w, %v), replica_groups={{0,1,2,3}}, dimensions={0}
  %while.2 = (s32[], f32[16]) while(%init), condition=%unread, body=%told, backend_config={"known_trip_count":{"n":"5"}}
  %reduce-scatter.3 = f32[4]{0} reduce-scatter(%y), replica_groups={{0,1}}, to_apply=%sum
  %lone = f32[99]{0} all-reduce(%z), replica_groups={{0}}, to_apply=%sum
}
"""  # noqa: E501


def test_each_collective_counts_what_its_ring_sends_as_often_as_its_loop_turns():
    assert hlo.traffic(program.parse(PROGRAM)) == pytest.approx(
        {
            "all-gather": 10 * 64 * 3 / 4 + 64 * 3 / 4,
            "reduce-scatter": 10 * 1024 * 3 / 4 + 2 * 16 / 2 + 2 * 32 * 3 / 4,
            "all-to-all": 5 * 64 * 3 / 4,
            "all-reduce": 2 * 16 * 7 / 8,
        }
    )

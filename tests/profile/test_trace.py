"""Traces of hand-made events: who ran when, on threads of a CPU, on a GPU and on a TPU."""

import random
from collections import Counter

import pytest
from jax.profiler import ProfileData

from jaxgen.profile import trace
from jaxgen.profile.trace import Ran

US = 1_000_000  # picoseconds


def plane(name, **lines):
    """A plane as text; lines: events (name, begin, length, {stat: value}) in microseconds."""
    events, stats, parts = [], ["hlo_op", "hlo_module", "_p", "_c"], []
    for line, told in lines.items():
        parts.append(f'lines {{ name: "{line}"')
        for what, begin, length, facts in told:
            if what not in events:
                events.append(what)
            parts.append(
                f"events {{ metadata_id: {events.index(what) + 1} offset_ps: {begin * US} "
                f"duration_ps: {length * US}"
            )
            for stat, value in facts.items():
                kind = "str_value" if isinstance(value, str) else "int64_value"
                shown = f'"{value}"' if isinstance(value, str) else value
                parts.append(f"stats {{ metadata_id: {stats.index(stat) + 1} {kind}: {shown} }}")
            parts.append("}")
        parts.append("}")
    for field, names in (("event_metadata", events), ("stat_metadata", stats)):
        for number, what in enumerate(names, 1):
            parts.append(f'{field} {{ key: {number} value {{ id: {number} name: "{what}" }} }}')
    return f'planes {{ name: "{name}" {" ".join(parts)} }}'


def read(*planes):
    serialized = ProfileData.text_proto_to_serialized_xspace(" ".join(planes))
    return trace.read_operations(ProfileData.from_serialized_xspace(serialized))


def of(name, **more):
    return {"hlo_op": name, "hlo_module": "jit_step"} | more


def shares(ran):
    return {name: pytest.approx(s * 1e6) for (_, name), s in trace.seconds(ran).items()}


def test_on_a_cpu_an_operation_lasts_until_its_threads_are_done():
    first = [
        ("ThunkExecutor::Execute", 0, 90, {}),
        ("while.1", 0, 5, of("while.1", _p=1)),  # only begun here
        ("dot.1", 0, 10, of("dot.1", _p=2)),  # handed out at 10, done at 60
        ("dot.2", 70, 10, of("dot.2", _p=3)),
        ("end: dot.2", 80, 1, {"_c": 3}),
    ]
    second = [
        ("add.1", 20, 20, of("add.1", _p=4)),
        ("end: add.1", 40, 1, {"_c": 4}),
        ("end: dot.1", 60, 1, {"_c": 2}),
        ("end: while.1", 100, 1, {"_c": 1}),
    ]
    ran = read(plane("/host:CPU", python=[("step", 0, 100, {})], one=first, two=second))
    # From 20 to 40 two ran and share it; the loop has what is left to it.
    assert shares(ran) == {"dot.1": 50, "add.1": 10, "dot.2": 10, "while.1": 30}
    assert {one.module for one in ran} == {"jit_step"}


def test_on_a_gpu_kernels_of_an_operation_are_one_execution():
    stream = [("gemm", 10 * n, 4, of("dot.1")) for n in range(3)]
    stream += [("split_k", 10 * n + 4, 2, of("dot.1")) for n in range(3)]
    host = [("dot.1", 0, 90, of("dot.1"))]
    ran = read(
        plane("/host:CPU", thread=host),
        plane("/device:GPU:0", stream=stream),
        plane("/device:GPU:1", stream=stream),
    )
    assert shares(ran) == {"dot.1": 18}
    assert trace.executions(ran) == {("jit_step", "dot.1"): 3}


def test_on_a_tpu_names_come_from_instructions_and_modules_from_their_line():
    operations = [
        ("%while.3 = (f32[8]) while(%tuple), body=%body", 0, 40, {}),
        ("%fusion.7 = f32[8] fusion(%p), kind=kLoop", 5, 30, {}),
        ("%fusion.7 = f32[4] fusion(%q), kind=kLoop", 60, 5, {}),
    ]
    modules = [("jit_step(123)", 0, 50, {}), ("jit_check(4)", 55, 20, {})]
    lines = {"XLA Ops": operations, "XLA Modules": modules, "Steps": [("1", 0, 99, {})]}
    ran = read(plane("/device:TPU:0", **lines), plane("/device:TPU:0 SparseCore 0"))
    seconds = {key: pytest.approx(s * 1e6) for key, s in trace.seconds(ran).items()}
    assert seconds == {
        ("jit_step", "while.3"): 10, ("jit_step", "fusion.7"): 30, ("jit_check", "fusion.7"): 5,
    }  # fmt: skip


def test_a_trace_without_operations_is_empty():
    assert read(plane("/host:CPU", python=[("step", 0, 100, {})])) == []


def test_shares_of_time_equal_those_counted_instant_by_instant():
    draw = random.Random(0)
    for _ in range(50):
        ran = []
        for _ in range(8):
            name, begin = draw.choice(["a", "b", "while.1", "call.2"]), draw.randint(0, 20)
            ran.append(Ran("m", name, name, begin, begin + draw.randint(0, 9)))
        wanted = Counter()
        for instant in range(30):
            active = [one for one in ran if one.begin <= instant < one.end]
            work = [one for one in active if one.name in ("a", "b")] or active
            for one in work:
                wanted["m", one.name] += 1 / len(work)
        found = {key: seconds for key, seconds in trace.seconds(ran).items() if seconds}
        assert found == pytest.approx(dict(wanted))

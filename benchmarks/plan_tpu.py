"""The plan of a ready config on a pod, beside what the compiler for TPUs says, on this machine.

    python benchmarks/plan_tpu.py llama_70b v5p:8x8x16     # minutes; needs the extra [tpu], no TPU
    python benchmarks/plan_tpu.py                          # seconds: the analytic side made anew

Writes benchmarks/results/plan_tpu.json: one entry a config, kept for those that are not named.
Bytes and FLOPs are those of one chip; the compiler's FLOPs count the body of each loop once.
"""

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

from jaxgen.plan import compilers, tpu

compilers.use_no_device()

from jaxgen import run  # noqa: E402
from jaxgen.cli import paths  # noqa: E402
from jaxgen.plan import analytic, chips, compiled, report  # noqa: E402
from jaxgen.run import facts  # noqa: E402

RESULT = Path(__file__).parent / "results" / "plan_tpu.json"


def by_compiler(name: str, topology: str) -> dict:
    settings, devices = run.read_settings(paths.config(name)), tpu.devices(topology)
    begin = time.process_time()
    programs = {"training": compiled.training, "decoding": compiled.decoding}
    made = {kind: asdict(make(settings, devices)) for kind, make in programs.items()}
    return {
        "command": f"python benchmarks/plan_tpu.py {name} {topology}",
        "compiled": made,
        "cost here": {
            "cpu seconds": time.process_time() - begin,
            "peak memory, bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "environment": facts.environment() | {"libtpu": tpu.version()},
    }


def by_shapes(name: str, topology: str, step: dict) -> dict:
    plan = analytic.make(run.read_settings(paths.config(name)), *chips.parse(topology))
    working = plan.total - plan.state
    return {
        "layout": report.layout(plan),
        "analytic": {
            "parameters + optimizer": plan.state,
            "temporary": working,
            "by holder": plan.memory,
            "traffic": plan.traffic,
            "roofline step, s": plan.step,
        },
        "analytic / compiled": {
            "parameters + optimizer": plan.state / step["state"],
            "temporary": working / step["temporary"],
            "traffic": sum(plan.traffic.values()) / sum(step["traffic"].values()),
        },
    }


def main(words: list[str]) -> None:
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, topology in zip(words[::2], words[1::2], strict=True):
        found[f"{name} {topology}"] = by_compiler(name, topology)
    for key, entry in found.items():
        found[key] = entry | by_shapes(*key.split(), entry["compiled"]["training"])
        print(key, json.dumps(found[key]["analytic / compiled"]))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""The plan of a ready config on a pod, beside what the compiler for TPUs says, on this machine.

    python benchmarks/plan_tpu.py llama_70b v5p:8x8x16 gpt3_175b v5p:8x8x16

Needs the extra [tpu] and no TPU. Writes benchmarks/results/plan_tpu.json: one entry a config, kept
for those that are not named. Bytes and FLOPs are those of one chip.
"""

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

from jaxgen.plan import tpu

tpu.use_no_device()

import jax  # noqa: E402

from jaxgen import run  # noqa: E402
from jaxgen.cli import paths  # noqa: E402
from jaxgen.plan import analytic, chips, compiled, report  # noqa: E402
from jaxgen.run import facts  # noqa: E402

RESULT = Path(__file__).parent / "results" / "plan_tpu.json"


def main(words: list[str]) -> None:
    for name, topology in zip(words[::2], words[1::2], strict=True):
        settings = run.read_settings(paths.config(name), ())
        plan = analytic.make(settings, *chips.parse(topology))
        devices = tpu.devices(topology)
        begin = time.process_time()
        programs = {"training": compiled.training, "decoding": compiled.decoding}
        made = {kind: asdict(make(settings, devices)) for kind, make in programs.items()}
        step = made["training"]
        working = plan.total - plan.state
        entry = {
            "command": f"python benchmarks/plan_tpu.py {name} {topology}",
            "layout": report.layout(plan),
            "analytic": {
                "parameters + optimizer": plan.state,
                "temporary": working,
                "by holder": plan.memory,
                "traffic": plan.traffic,
                "roofline step, s": plan.step,
            },
            "compiled": made,
            "analytic / compiled": {
                "parameters + optimizer": plan.state / step["state"],
                "temporary": working / step["temporary"],
                "traffic": sum(plan.traffic.values()) / sum(step["traffic"].values()),
            },
            "cost here": {
                "cpu seconds": time.process_time() - begin,
                "peak memory, bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
            "environment": facts.environment() | {"libtpu": tpu.version()},
        }
        found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(found | {f"{name} {topology}": entry}, indent=1) + "\n")
        print(json.dumps(entry["analytic / compiled"]), jax.__version__)


if __name__ == "__main__":
    main(sys.argv[1:])

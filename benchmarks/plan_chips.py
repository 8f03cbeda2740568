"""The plan of a ready config on chips that are not here, beside what their compiler says.

    python benchmarks/plan_chips.py llama_70b v5p:8x8x16   # minutes; needs the extra [tpu], no TPU
    python benchmarks/plan_chips.py llama_8b h200:64       # a minute; needs [cuda], no GPU
    python benchmarks/plan_chips.py                        # seconds: the analytic side made anew

Writes benchmarks/results/plan_chips.json: one entry a config, kept for those that are not named.
Bytes and FLOPs are those of one chip; the compiler's FLOPs count the body of each loop once.
"""

import json
import resource
import sys
import time
from dataclasses import fields
from pathlib import Path

from jaxgen.plan import compilers

compilers.use_no_device()

from jaxgen import run  # noqa: E402
from jaxgen.cli import paths  # noqa: E402
from jaxgen.plan import compiled, report, roofline  # noqa: E402
from jaxgen.profile import chips  # noqa: E402
from jaxgen.run import facts, forecast  # noqa: E402

RESULT = Path(__file__).parent / "results" / "plan_chips.json"


def told(program: compiled.Program, chip: chips.Chip) -> dict:
    """Return what the compiler says of a program, and its operations' time at the roofline."""
    names = [field.name for field in fields(program) if field.name != "text"]
    work = roofline.work(program.text, chip)
    bound = {
        what: sum(one.seconds for one in work if one.bound == what)
        for what in ("products", "bandwidth")
    }
    return {name: getattr(program, name) for name in names} | {
        "operations": sum(one.times for one in work),
        "operations at the roofline, s": bound,
    }


def by_compiler(name: str, topology: str) -> dict:
    settings, (chip, _) = run.read_settings(paths.config(name)), chips.parse(topology)
    compiler = compilers.COMPILERS[chip.platform]
    devices = compiler.devices(topology)
    begin = time.process_time()
    programs = {"training": compiled.training, "decoding": compiled.decoding}
    made = {kind: told(make(settings, devices), chip) for kind, make in programs.items()}
    return {
        "command": f"python benchmarks/plan_chips.py {name} {topology}",
        "compiled": made,
        "cost here": {
            "cpu seconds": time.process_time() - begin,
            "peak memory, bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "environment": facts.environment() | {compiler.NAME: compiler.version()},
    }


def by_shapes(name: str, topology: str, step: dict) -> dict:
    plan = forecast.plan_memory(run.read_settings(paths.config(name)), *chips.parse(topology))
    working, sent = plan.total - plan.state, sum(step["traffic"].values())
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
        }
        | ({"traffic": sum(plan.traffic.values()) / sent} if sent else {}),
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

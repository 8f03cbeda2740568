"""`jaxgen plan`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import arguments, paths, start
from jaxgen.cli.arguments import Overrides
from jaxgen.errors import ConfigError

HERE = "here"
Figures = Literal["auto", "analytic", "compiled", "measured"]
Config = Annotated[
    str | None, Parameter(help="a .yaml file, or its name in configs/; none: list the chips")
]
Topology = Annotated[
    str | None,
    Parameter(
        help="chip:shape, such as v5p:8x8x16, v5e:16x16, 2xv6e:4x4 (two slices), h200:8; or "
        "here, for this machine"
    ),
]
Shown = Annotated[
    Figures,
    Parameter(
        help="analytic; compiled: also by the compiler for those chips, with the extra [tpu] or "
        "[cuda]; measured: also by steps run on this machine; auto: what there is"
    ),
]


def plan(
    config: Config = None,
    /,
    *overrides: Overrides,
    topology: Topology = None,
    figures: Shown = "auto",
    steps: Annotated[int, arguments.at_least(1), Parameter(help="measured: how many steps")] = 3,
) -> None:
    """Say what a config would need on chips that are not here, before paying for them.

    Memory of one chip by what holds it, FLOPs, bytes sent by each collective, the
    time of a step at the roofline and what bounds it. Where it does not fit, the
    nearest mesh, number of microbatches and remat that do. With the extra [tpu]
    or [cuda] the real steps are compiled for the chips, without any, and the
    compiler's own figures follow. For this machine a few real steps are run and
    compared.

    For example:
        jaxgen plan                            the chips there are
        jaxgen plan llama_70b --topology v5p:8x8x16
        jaxgen plan llama_8b --topology h200:8 mesh=fsdp:8 train.batch=64
        jaxgen plan shakespeare_char --topology here
    """
    arguments.check_overrides(overrides)
    from jaxgen.plan import compilers
    from jaxgen.profile import chips

    if config is None:
        terminal.print_rows(chips.rows())
        return
    if topology is None:
        names = ", ".join(chips.DIMENSIONS)
        raise ConfigError(
            f"--topology is missing: CHIP:SHAPE of {names}, or here for this machine; `jaxgen "
            f"plan` alone lists the chips"
        )
    chip, count = (None, 0) if topology == HERE else chips.parse(topology)
    figures = _figures(figures, topology, None if chip is None else chip.platform)
    start.prepare_jax(paths.cache())
    compilers.use_no_device()
    from jaxgen import run
    from jaxgen.plan import measured, report
    from jaxgen.run import forecast, inputs

    settings = inputs.sized(run.read_settings(paths.config(config), overrides))
    if chip is None:
        chip, count = measured.machine(settings)
    memory_plan = forecast.plan_memory(settings, chip, count)
    terminal.print_rows(report.rows(memory_plan, compiling=figures == "compiled"))
    if figures == "compiled":
        _compile(memory_plan, topology, chip.platform)
    elif figures == "measured":
        _measure(memory_plan, steps)


def _figures(asked: Figures, topology: str, platform: str | None) -> Figures:
    """Return what "auto" stands for, or what was asked; ConfigError where it makes no sense."""
    from jaxgen.plan.compilers import COMPILERS

    if asked == "compiled" and platform is None:
        raise ConfigError(
            "--figures=compiled is for chips that are not here; give their --topology, as in "
            "v5p:2x2x1 or h200:8"
        )
    if asked == "measured" and platform is not None:
        raise ConfigError(
            f"--figures=measured runs on this machine, and --topology={topology} is not here; "
            f"give --topology here"
        )
    if asked != "auto":
        return asked
    if platform is None:
        return "measured"
    return "compiled" if COMPILERS[platform].installed() else "analytic"


def _compile(memory_plan, topology: str, platform: str) -> None:
    from jaxgen.plan import compiled, report
    from jaxgen.plan.compilers import COMPILERS
    from jaxgen.terminal import waiting

    devices = COMPILERS[platform].devices(topology)
    for name, make in (("training", compiled.training), ("decoding", compiled.decoding)):
        with waiting(f"compiling the {name} step for {len(devices)} x {memory_plan.chip.name}"):
            program = make(memory_plan.settings, devices)
        if program is not None:
            terminal.print_rows(report.compiled_rows(memory_plan, program))


def _measure(memory_plan, steps: int) -> None:
    from jaxgen.plan import measured, report
    from jaxgen.terminal import waiting

    with waiting(f"running {steps + 1} steps"):
        seen = measured.steps(memory_plan.settings, steps)
    terminal.print_rows(report.measured_rows(memory_plan, seen))

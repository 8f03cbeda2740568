"""`jaxgen plan`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import arguments, paths
from jaxgen.cli.arguments import Overrides


def plan(
    config: Annotated[str, Parameter(help="a .yaml file, or its name in configs/")],
    /,
    *overrides: Overrides,
    topology: Annotated[
        str, Parameter(help="chip:shape, such as v5p:8x8x16, v5e:16x16, v6e:4x4, v4:4x4x4, h200:8")
    ],
) -> None:
    """Say what a config would need on chips that are not here, before paying for them.

    Memory of one chip by what holds it, FLOPs, bytes sent by each collective, the
    time of a step at the roofline and what bounds it. Where it does not fit, the
    nearest mesh, number of microbatches and remat that do.

    For example:
        jaxgen plan llama_70b --topology v5p:8x8x16
        jaxgen plan llama_8b --topology h200:8 mesh=fsdp:8 train.batch=64
    """
    arguments.check_overrides(overrides)
    from jaxgen import run
    from jaxgen.plan import analytic, chips, report

    chip, count = chips.parse(topology)
    settings = run.read_settings(paths.config(config), overrides)
    arguments.print_rows(report.rows(analytic.make(settings, chip, count)))

"""`jaxgen verify`: promises checked on the user's own config."""

from __future__ import annotations

from math import prod
from typing import Annotated

from cyclopts import App, Parameter

from jaxgen.cli import arguments, paths, start
from jaxgen.cli.arguments import WHOLE, Overrides
from jaxgen.errors import ConfigError


def shards(
    config: Annotated[str, Parameter(help="a .yaml file, or its name in configs/")],
    /,
    *overrides: Overrides,
    steps: Annotated[int, WHOLE, Parameter(help="steps that are compared")] = 20,
) -> None:
    """Train on one device and on the mesh of a config, and compare the loss step by step.

    On a machine without accelerators the devices are made of its cores, as many
    as the mesh wants. Ends with 1 and the first step that differs.

    For example:
        jaxgen verify shards debug mesh=data:2,fsdp:4
    """
    if steps < 1:
        raise ConfigError(f"--steps={steps} must be at least 1")
    arguments.check_overrides(overrides)
    from jaxgen import run

    settings, cache = run.read_settings(paths.config(config), overrides), paths.cache()
    mesh = settings.mesh
    start.prepare_jax(cache)
    import jax

    # Takes effect on the CPU only, and only before its first use.
    jax.config.update(
        "jax_num_cpu_devices", prod((mesh.data or 1, mesh.fsdp, mesh.tensor, mesh.sequence))
    )
    from jaxgen.verify.shards import shards as compare

    arguments.print_rows(compare(settings, steps=steps, cache=cache))


VERBS = ((shards, "shards", "CONFIG [KEY=VALUE ...] [--steps N]"),)


def make(**looks) -> App:
    """Return the group of verbs; `looks` are those of the whole command."""
    app = App(name="verify", help="Check a promise on your own config or run.", **looks)
    for order, (verb, name, usage) in enumerate(VERBS):
        app.command(verb, name=name, sort_key=order, usage=f"Usage: jaxgen verify {name} {usage}")
    return app

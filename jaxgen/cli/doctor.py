"""`jaxgen doctor`."""

from __future__ import annotations

import json
import os
from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import arguments, launch, paths, start
from jaxgen.cli.arguments import Overrides
from jaxgen.errors import BusyError


def doctor(
    config: Annotated[
        str | None, Parameter(help="whose digest is shown: a config, or a run")
    ] = None,
    /,
    *overrides: Overrides,
    as_json: Annotated[bool, Parameter(name="--json", help="print plain data")] = False,
    among: launch.Flags | None = None,
) -> None:
    """Show versions, devices, flags, memory, folders and clock, and warn of known traps.

    In several processes (--coordinator, or a cluster that says so) one table has
    a column for each, and what must be alike and is not is a warning. Ends with 3
    if no device can be used.

    For example:
        jaxgen doctor
        jaxgen doctor runs/my --json
    """
    arguments.check_overrides(overrides)
    from jaxgen import run

    settings = None
    if config is not None and (home := paths.begun(config)) is not None:
        settings = run.changed_settings(home, overrides)
    elif config is not None:
        settings = run.read_settings(paths.config(config), overrides)
    cache = paths.cache()
    start.prepare_jax(cache)
    with launch.group(among) as group:
        from jaxgen.verify import doctor as examination
        from jaxgen.verify import table, traps

        processes = examination.examine(settings, cache, os.environ, group)
        warnings = traps.find(processes)
        if group.first and as_json:
            print(json.dumps({"processes": processes, "warnings": warnings}, indent=2))
        elif group.first:
            table.print_facts([examination.lines(facts) for facts in processes], warnings)
        if any("error" in facts["devices"] for facts in processes):
            raise BusyError("no device can be used; the warnings say why")

"""Which processes a command belongs to: flags, else the environment of the usual launchers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from jaxgen.cli import exits, launchers
from jaxgen.cli.arguments import REAL, WHOLE
from jaxgen.errors import ConfigError

if TYPE_CHECKING:
    from jaxgen.mesh.group import Group
    from jaxgen.mesh.launch import Launch

# JAX names them so; the flags go first.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags:
    """The words of the command line that say how a process finds the others."""

    coordinator: Annotated[
        str | None, Parameter(help="HOST:PORT of process 0, for a run of several processes")
    ] = None
    processes: Annotated[
        int | None, WHOLE, Parameter(help="how many processes there are; 1: alone, wherever it is")
    ] = None
    process: Annotated[int | None, WHOLE, Parameter(help="which of them this is, from 0")] = None
    start_timeout: Annotated[
        float, REAL, Parameter(help="seconds that the processes wait for each other at the start")
    ] = 300.0
    peer_timeout: Annotated[
        float, REAL, Parameter(help="seconds of silence after which a process is taken for lost")
    ] = 30.0
    stall_timeout: Annotated[
        float, REAL, Parameter(help="seconds without a step after which a process is stuck")
    ] = 1800.0


@contextmanager
def group(flags: Flags | None) -> Iterator[Group]:
    """Yield the group of processes that this command runs in; alone unless told or found.

    An error that ends one of several processes ends it here, with its line and exit code.
    """
    from jaxgen.mesh.group import AgreedExit
    from jaxgen.mesh.launch import joined

    launch = find(flags or Flags(), os.environ)
    try:
        with joined(launch) as joined_group:
            yield joined_group
    except BaseException as error:
        if launch is None or launch.processes == 1 or isinstance(error, AgreedExit):
            raise
        code = error.code if isinstance(error, SystemExit) else exits.report(error)
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(
            code if isinstance(code, int) else 1
        )  # at a usual exit JAX would wait for the others, and abort


def find(flags: Flags, environment: Mapping[str, str]) -> Launch | None:
    """Return how to join the others, None for a process on its own.

    The flags say it, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then the
    variables of the launcher (`launchers`). Raises ConfigError if together they say half: several
    processes must not each train alone in one folder.
    """
    from jaxgen.mesh.launch import Launch

    if flags.processes == 1:
        return None
    place = _from_flags(flags, environment)
    launcher = None
    launched = None if len(place) == len(VARIABLES) else launchers.find(environment)
    if launched is not None and launched[1].get("processes") != 1:
        launcher, place = launched[0], launched[1] | place
    if not place or place.get("processes") == 1:
        return None
    if missing := [name for name in VARIABLES if name not in place]:
        raise ConfigError(_refusal(missing, launcher, place))
    return Launch(
        **place,
        start_timeout=flags.start_timeout,
        peer_timeout=flags.peer_timeout,
        stall_timeout=flags.stall_timeout,
        token=environment.get("JAXGEN_TOKEN", ""),
    )


def words(flags: Flags | None) -> list[str]:
    """Return the words of the command line that these flags are written with."""
    flags = flags or Flags()
    given = [(f.name, getattr(flags, f.name), f.default) for f in fields(flags)]
    return [
        f"--{name.replace('_', '-')}={value}" for name, value, default in given if value != default
    ]


def _from_flags(flags: Flags, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the flags and JAX's variables say of this process's place."""
    place = {}
    for name, variable in VARIABLES.items():
        if (value := getattr(flags, name)) is not None:
            place[name] = value
        elif variable in environment:
            text = name == "coordinator"
            place[name] = environment[variable] if text else launchers.number(environment, variable)
    return place


def _refusal(missing: list[str], launcher: str | None, place: Mapping[str, Any]) -> str:
    lacking = " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
    if launcher is None:
        return (
            f"{lacking} is missing; a run of several processes needs --coordinator HOST:PORT, "
            f"--processes and --process, in each of them"
        )
    count = f" of {place['processes']}" if "processes" in place else ""
    return (
        f"{launcher} says that this is process {place['process']}{count}, but not {lacking}: give "
        f"it in each process, or --processes 1 for a run of its own"
    )

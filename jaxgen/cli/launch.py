"""Which processes a command belongs to: flags, else the environment of the usual launchers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from jaxgen.cli import exits
from jaxgen.cli.arguments import REAL, WHOLE
from jaxgen.errors import BusyError, ConfigError

if TYPE_CHECKING:
    from jaxgen.mesh.group import Group
    from jaxgen.mesh.launch import Launch

PORTS = (61440, 4096)  # first and number of the ports that a Slurm job's number picks from
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
    """Return how to join the others, None for a process on its own; ConfigError if half is said.

    Looked for in this order: the flags, JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, a Slurm step of several tasks (srun), the hosts of a TPU pod.
    """
    from jaxgen.mesh.launch import Launch

    if flags.processes == 1:
        return None
    place = _from_flags(flags, environment) or _slurm(environment) or _tpu(environment)
    if place is None:
        return None
    return Launch(
        **place,
        start_timeout=flags.start_timeout,
        peer_timeout=flags.peer_timeout,
        stall_timeout=flags.stall_timeout,
    )


def _from_flags(flags: Flags, environment: Mapping[str, str]) -> dict[str, Any] | None:
    words = {name: getattr(flags, name) for name in VARIABLES}
    for name, variable in VARIABLES.items():
        if words[name] is None and variable in environment:
            text = environment[variable]
            words[name] = text if name == "coordinator" else _number(variable, text)
    missing = [name for name, word in words.items() if word is None]
    if len(missing) == len(words):
        return None
    if missing and words["processes"] != 1:
        lacking = " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
        raise ConfigError(
            f"{lacking} is missing; a run of several processes needs --coordinator HOST:PORT, "
            f"--processes and --process, in each of them"
        )
    return None if missing else words


def _number(variable: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{variable}={text!r} is no whole number; correct or unset it") from None


def _slurm(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the place of a task of `srun`; None outside of a step or in one of a single task."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(name in environment for name in names):
        return None
    job, count, index = (_number(n, environment[n]) for n in (names[0], *names[2:]))
    if count == 1:
        return None
    each = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]
    shared = _number("SLURM_STEP_TASKS_PER_NODE", each) > 1
    local = _number("SLURM_LOCALID", environment.get("SLURM_LOCALID", "0"))
    port = environment.get("JAX_COORDINATOR_PORT", str(PORTS[0] + job % PORTS[1]))
    return {
        "coordinator": f"{_first_host(environment[names[1]])}:{port}",
        "processes": count,
        "process": index,
        # Tasks that share a node share its GPUs, one each; a task alone has them all.
        "devices": (local,) if shared else None,
    }


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's list of hosts: "n7" of "n7,n9", "n07" of "n[07-09,12],m1"."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.partition(",")[0]
    inside, _, tail = rest.partition("]")
    suffix = tail.partition(",")[0]
    return head + inside.replace("-", ",").partition(",")[0] + suffix


def _tpu(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the place of a host of a TPU pod, as JAX finds it out; None where there is no TPU."""
    if environment.get("JAX_PLATFORMS", "tpu").partition(",")[0] != "tpu":
        return None
    # Importing JAX looks for chips; only where it has found some does it ask for the pod.
    import jax  # noqa: F401
    from jax._src import cloud_tpu_init, clusters

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return None
    try:
        address, count, index, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, 300
        )
    except Exception as error:  # of the metadata server, of its client, or of what it answers
        raise BusyError(
            f"the hosts of this TPU pod can't be found out ({type(error).__name__}: {error}); give "
            f"--coordinator, --processes and --process, or --processes 1 for this host alone"
        ) from error
    if count is None or count == 1:
        return None
    return {"coordinator": address, "processes": count, "process": index}

"""What the usual launchers tell a process of its place, in the environment variables they set."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxgen.errors import BusyError, ConfigError

Environment = Mapping[str, str]
# What is known of a process's place: `processes` and `process`, and perhaps `coordinator`
# ("HOST:PORT") and `devices` (the local ones it may use, None for all); None outside the launcher.
Place = dict[str, Any] | None

PORTS = (61440, 4096)  # first and number of the ports that a job's name picks from
K8S_PORT = "8476"  # pods have addresses of their own, so no other job can hold it
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def find(environment: Environment) -> tuple[str, dict[str, Any]] | None:
    """Return (name of the launcher, place) of the first launcher that started this process.

    Raises ConfigError for a variable that should be a number and is none, BusyError if the hosts
    of a TPU pod can't be asked for.
    """
    for name, read in LAUNCHERS.items():
        if (place := read(environment)) is not None:
            return name, place
    return None


def number(environment: Environment, variable: str, default: str | None = None) -> int:
    """Return the number in a variable; ConfigError if it is none."""
    text = environment.get(variable, default)
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"{variable}={text!r} is no whole number; correct or unset it") from None


def torchrun(environment: Environment) -> Place:
    """PyTorch's variables: torchrun, a PyTorchJob of Kubeflow, a worker of Ray Train."""
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return None
    place = _ranks(environment, "WORLD_SIZE", "RANK")
    place["devices"] = _device(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        port = environment["MASTER_PORT"]
        if environment.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true":
            port = _port(environment, port)  # torchrun itself listens at its own
        place["coordinator"] = f"{environment['MASTER_ADDR']}:{port}"
    return place


def open_mpi(environment: Environment) -> Place:
    """Open MPI's mpirun; before version 5 it says the address of the host that it runs on."""
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    place = _ranks(environment, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    per_host = "OMPI_COMM_WORLD_LOCAL_SIZE"
    place["devices"] = _device(environment, "OMPI_COMM_WORLD_LOCAL_RANK", per_host)
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    address = re.search(r"tcp://([^,:]+)|tcp6://(\[[^],]+)", uri)
    if address is not None:
        host = address[1] or f"{address[2]}]"
        place["coordinator"] = f"{host}:{_port(environment, uri)}"
    elif environment.get(per_host) == environment["OMPI_COMM_WORLD_SIZE"]:
        place["coordinator"] = f"127.0.0.1:{_port(environment, _job(environment))}"
    return place


def mpich(environment: Environment) -> Place:
    """MPICH's and Intel MPI's mpiexec, which names no host."""
    return pmi(environment) if "MPI_LOCALRANKID" in environment else None


def pmi(environment: Environment) -> Place:
    """Any other launcher that speaks PMI."""
    if not {"PMI_SIZE", "PMI_RANK"} <= environment.keys():
        return None
    place = _ranks(environment, "PMI_SIZE", "PMI_RANK")
    per_host = "MPI_LOCALNRANKS"
    place["devices"] = _device(environment, "MPI_LOCALRANKID", per_host)
    if environment.get(per_host) == environment["PMI_SIZE"]:
        place["coordinator"] = f"127.0.0.1:{_port(environment, _job(environment))}"
    return place


def slurm(environment: Environment) -> Place:
    """A task of Slurm's srun; a batch script outside of a step is none."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(name in environment for name in names):
        return None
    place = _ranks(environment, names[2], names[3])
    place["devices"] = _device(environment, "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    port = environment.get(
        "JAX_COORDINATOR_PORT", PORTS[0] + number(environment, names[0]) % PORTS[1]
    )
    place["coordinator"] = f"{_first_host(environment[names[1]])}:{port}"
    return place


def tpu_pod(environment: Environment) -> Place:
    """A host of a TPU pod or of several slices, as JAX finds it out; None where there is no TPU."""
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
    if count is None:
        return None
    return {"coordinator": address, "processes": count, "process": index}


def skypilot(environment: Environment) -> Place:
    """A node of a SkyPilot task."""
    if not {"SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"} <= environment.keys():
        return None
    place = _ranks(environment, "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")
    hosts = environment.get("SKYPILOT_NODE_IPS", "").split()
    if hosts:
        port = _port(environment, environment.get("SKYPILOT_TASK_ID", ""))
        place["coordinator"] = f"{_bracketed(hosts[0])}:{port}"
    return place


def kubernetes(environment: Environment) -> Place:
    """A pod of an indexed Job, alone or of a JobSet: it knows its number, not how many there are.

    Its host is named JOB-NUMBER, in the domain of the Job's headless service if there is one.
    """
    if "JOB_COMPLETION_INDEX" not in environment:
        return None
    index = number(environment, "JOB_COMPLETION_INDEX")
    place: dict[str, Any] = {"process": index}
    host, dot, domain = socket.getfqdn(environment.get("HOSTNAME", "")).partition(".")
    if dot and host.endswith(f"-{index}"):
        first = f"{host.removesuffix(str(index))}0.{domain}"
        place["coordinator"] = f"{first}:{environment.get('JAX_COORDINATOR_PORT', K8S_PORT)}"
    return place


# The innermost launcher decides: torchrun and mpirun are themselves started by srun, and SkyPilot
# and Kubernetes start what runs on the hosts of a TPU pod.
LAUNCHERS: dict[str, Callable[[Environment], Place]] = {
    "torchrun": torchrun,
    "Open MPI": open_mpi,
    "MPICH": mpich,
    "Slurm": slurm,
    "PMI": pmi,
    "the TPU pod": tpu_pod,
    "SkyPilot": skypilot,
    "Kubernetes": kubernetes,
}


def _ranks(environment: Environment, count: str, index: str) -> dict[str, Any]:
    return {"processes": number(environment, count), "process": number(environment, index)}


def _device(environment: Environment, index: str, per_host: str) -> tuple[int, ...] | None:
    """Return the device of a process that shares its host, unless it sees one device anyway.

    index, per_host: variables; Slurm writes "2(x4)" for two processes on each of four hosts.
    """
    visible = [environment[name] for name in VISIBLE_DEVICES if environment.get(name)]
    count = re.split(r"[(,]", environment.get(per_host, "1"))[0]
    if number({per_host: count}, per_host) == 1 or any("," not in ids for ids in visible):
        return None
    return (number(environment, index, "0"),)


def _port(environment: Environment, job: str) -> str:
    """Return a port that all processes of a job choose alike, and other jobs most likely don't."""
    chosen = PORTS[0] + zlib.crc32(job.encode()) % PORTS[1]
    return environment.get("JAX_COORDINATOR_PORT", str(chosen))


def _job(environment: Environment) -> str:
    """Return what the processes that one launcher started on this host have in common."""
    return environment.get("PMIX_NAMESPACE") or str(os.getppid())


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's list of hosts: "n7" of "n7,n9", "n07" of "n[07-09,12],m1"."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.partition(",")[0]
    inside, _, tail = rest.partition("]")
    suffix = tail.partition(",")[0]
    return head + inside.replace("-", ",").partition(",")[0] + suffix

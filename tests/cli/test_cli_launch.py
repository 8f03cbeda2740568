"""A process finds its place: from flags, JAX's variables or its launcher, in turn."""

import json
import os
import subprocess
import sys

import pytest

from jaxgen.cli.launch import Flags, find
from jaxgen.errors import BusyError, ConfigError

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-009,12],login",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
}
# What each launcher sets, for the last of four processes, two a host.
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n7", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
PYTORCH_JOB = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "j-master-0", "MASTER_PORT": "23456"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}  # fmt: skip
OPEN_MPI_5 = {k: v for k, v in OPEN_MPI.items() if "uri" not in k} | {
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "PMIX_NAMESPACE": "prterun-n7-4711@1",
}  # fmt: skip
MPICH = {
    "PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "3",
}  # fmt: skip
SKYPILOT = {
    "SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "3", "SKYPILOT_TASK_ID": "sky-2026-11_t_1-0",
    "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8\n10.0.0.9\n10.0.0.10\n",
}  # fmt: skip
JOBSET = {"JOB_COMPLETION_INDEX": "3", "HOSTNAME": "run-workers-0-3", "JAX_NUM_PROCESSES": "4"}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
    "JAX_PLATFORMS": "cpu",
}


def place(flags, environment):
    found = find(Flags(**flags), {"JAX_PLATFORMS": "cpu"} | environment)
    return found and (found.coordinator, found.processes, found.process, found.devices)


def test_without_flags_and_launcher_a_process_is_alone():
    assert place({}, {}) is None
    assert place({}, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    # A batch script of Slurm outside of srun is no task of a step.
    assert place({}, {k: v for k, v in SLURM.items() if "STEP" not in k}) is None


def test_flags_go_before_variables_and_these_before_slurm():
    assert place({}, JAX | SLURM) == ("a:1", 2, 1, None)
    assert place({"process": 0, "coordinator": "b:2"}, JAX | SLURM) == ("b:2", 2, 0, None)
    assert place({"processes": 1}, JAX | SLURM) is None


def test_timeouts_are_those_of_the_flags():
    found = find(Flags(start_timeout=7.0, peer_timeout=9.0, stall_timeout=11.0), JAX)
    assert (found.start_timeout, found.peer_timeout, found.stall_timeout) == (7.0, 9.0, 11.0)
    secret = find(Flags(), JAX | {"JAXGEN_TOKEN": "s3cret"})
    assert (found.token, secret.token) == ("", "s3cret") and "s3cret" not in repr(secret)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("node007:61441", 4, 3, None)),
        ({"SLURM_STEP_NODELIST": "n7,n9"}, ("n7:61441", 4, 3, None)),
        ({"SLURM_STEP_NODELIST": "login"}, ("login:61441", 4, 3, None)),
        ({"SLURM_STEP_NODELIST": "gpu[3-4]-ib"}, ("gpu3-ib:61441", 4, 3, None)),
        ({"SLURM_STEP_NODELIST": "n7,m[1-2]"}, ("n7:61441", 4, 3, None)),
        ({"JAX_COORDINATOR_PORT": "99"}, ("node007:99", 4, 3, None)),
        # Two tasks on a node: each takes the GPU of its own number.
        (
            {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"},
            ("node007:61441", 4, 3, (1,)),
        ),
    ],
)
def test_a_task_of_srun_finds_the_first_node_its_number_and_its_devices(changes, expected):
    assert place({}, SLURM | changes) == expected


@pytest.mark.parametrize(
    ("environment", "host", "devices"),
    [
        (TORCHRUN, "n7", (1,)),
        (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "1"}, "n7", None),  # as workers of Ray Train have it
        (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "2,3"}, "n7", (1,)),
        (TORCHRUN | SLURM, "n7", (1,)),
        (PYTORCH_JOB, "j-master-0:23456", None),
        (OPEN_MPI, "10.96.0.1", (1,)),
        (OPEN_MPI | SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, "10.96.0.1", (1,)),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp6://[fe80::b,2620::2]:4"}, "[fe80::b]", (1,)),
        (OPEN_MPI_5, "127.0.0.1", (3,)),
        (MPICH, "127.0.0.1", (3,)),
        (MPICH | SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "127.0.0.1", (3,)),
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "JAX_COORDINATOR_ADDRESS": "n7:1"}, "n7:1", None),
        (SKYPILOT, "10.0.0.7", None),
        (JOBSET, "run-workers-0-0.run.default.svc.cluster.local:8476", None),
        (JOBSET | {"JAX_COORDINATOR_PORT": "99"}, "run-workers-0-0.run.default.svc", None),
    ],
)
def test_each_launcher_is_detected(environment, host, devices, monkeypatch):
    monkeypatch.setattr("socket.getfqdn", lambda name: f"{name}.run.default.svc.cluster.local")
    coordinator, *rest = place({}, environment)
    assert coordinator.startswith(host) and rest == [4, 3, devices]
    assert 0 < int(coordinator.rpartition(":")[2]) < 65536
    # All processes of a job must choose one port, and never that which torchrun listens at.
    assert place({}, environment)[0] == coordinator and not coordinator.endswith(":29500")
    assert place({"processes": 1}, environment) is None


@pytest.mark.parametrize(
    ("flags", "environment", "part"),
    [
        ({"process": 1}, {}, "--coordinator (or JAX_COORDINATOR_ADDRESS) and --processes (or"),
        ({"coordinator": "a:1", "processes": 2}, {}, "--process (or JAX_PROCESS_ID) is missing"),
        ({}, JAX | {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID='one' is no whole number"),
        ({}, SLURM | {"SLURM_PROCID": ""}, "SLURM_PROCID='' is no whole number"),
        ({}, JAX | {"JAX_PROCESS_ID": "2"}, "--process 2 is not one of the 2 processes"),
        ({"process": 1}, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "--coordinator (or JAX_COORDI"),
        (
            {},
            {"JOB_COMPLETION_INDEX": "0", "HOSTNAME": "lone"},
            "Kubernetes says that this is process 0, but not --coordinator (or JAX_COORDINATOR_"
            "ADDRESS) and --processes (or JAX_NUM_PROCESSES): give it in each process, or "
            "--processes 1",
        ),
        ({}, JOBSET | {"HOSTNAME": "alone-3"}, "process 3 of 4, but not --coordinator (or JAX_"),
        ({}, MPICH | {"MPI_LOCALNRANKS": "2"}, "MPICH says that this is process 3 of 4, but not"),
        ({}, {"RANK": "1", "WORLD_SIZE": "2"}, "torchrun says that this is process 1 of 2, but"),
    ],
)
def test_half_a_place_is_refused_with_what_is_missing(flags, environment, part):
    with pytest.raises(ConfigError) as caught:
        place(flags, environment)
    assert part in str(caught.value)


def test_a_tpu_pod_that_jax_cannot_find_out_is_refused_with_the_way_around(monkeypatch):
    from jax._src import cloud_tpu_init, clusters

    def fail(*_):
        raise ModuleNotFoundError("No module named 'requests'")

    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", fail)
    with pytest.raises(BusyError, match=r"No module named 'requests'.*or --processes 1"):
        find(Flags(), {})
    assert find(Flags(processes=1), {}) is None


def test_a_host_of_a_tpu_pod_takes_its_place_from_what_jax_finds():
    program = (
        "import os, json; from jaxgen.cli.launch import Flags, find; "
        "f = find(Flags(), os.environ); print(json.dumps([f.coordinator, f.processes, f.process]))"
    )
    # As on Kubernetes; JAX asks nobody then.
    pod = {
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_HOSTNAMES": "localhost,elsewhere",
        "TPU_WORKER_ID": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | pod
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["localhost:8482", 4, 3]

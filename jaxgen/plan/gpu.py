"""The compiler for NVIDIA GPUs on a machine that has none: JAX's CUDA plugin, told of a GPU."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata
from typing import Any

from jaxgen.errors import BusyError
from jaxgen.profile import chips

NAME = "JAX's CUDA plugin with cuDNN"
INSTALL = "pip install 'jaxgen[cuda]'"
RELEASES = (13, 12)  # of CUDA
PLUGIN, CUDNN = "jax-cuda{}-plugin", "nvidia-cudnn-cu{}"  # the packages of a release
# What CUDA tells of a GPU of compute capability 9.0: H100 and H200 are one die.
HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {dnn[0]} minor: {dnn[1]} patch: {dnn[2]} }}
runtime_version {{ major: {cuda} }}
device_description_str: "{name}"
"""


def installed() -> bool:
    """Return whether the plugin and cuDNN are there; they are not loaded."""
    return _release() is not None


def version() -> str:
    """Return the plugin's version, and that of cuDNN."""
    release = _release()
    plugin, cudnn = (metadata.version(name.format(release)) for name in (PLUGIN, CUDNN))
    return f"{plugin} for CUDA {release}, cuDNN {cudnn}"


def devices(topology: str) -> list[Any]:
    """Return the devices of "h200:8", to compile for; BusyError with the remedy if it can't be.

    Nothing can run on them. More than a machine's 8 are laid out in as many machines of one size.
    """
    release = _release()
    if release is None:
        raise BusyError(f"compiling for {topology} needs {NAME}, not all installed: {INSTALL}")
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    chip, count = chips.parse(topology)
    machines = chip.groups(count)
    dnn = metadata.version(CUDNN.format(release)).split(".")
    target = HOPPER.format(
        name=chip.name, memory=chip.memory, bandwidth=chip.bandwidth, cuda=release, dnn=dnn
    )
    shape = f"1x{machines}x{count // machines}"  # slices, machines of each, devices of each
    try:
        described = topologies.get_topology_desc(
            topology, "cuda", target_config=target, topology=shape
        )
    except (JaxRuntimeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BusyError(f"{NAME} {version()} knows no topology {topology}: {reason}") from error
    return list(described.devices)


def _release() -> int | None:
    """Return the release of CUDA whose packages are all there."""
    for release in RELEASES:
        with suppress(metadata.PackageNotFoundError):
            for name in (PLUGIN, CUDNN):
                metadata.version(name.format(release))
            return release
    return None

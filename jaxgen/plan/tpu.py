"""The compiler for TPUs on a machine that has none: `libtpu`, and what it must be told."""

from __future__ import annotations

import os
from importlib import metadata, util
from typing import Any

from jaxgen.errors import BusyError
from jaxgen.profile import chips

NAME = "libtpu"
INSTALL = "pip install 'jaxgen[tpu]'"
# Where libtpu looks for the chips of the machine it runs on; here there are none to be found.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks the cloud's metadata server, and waits for it
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip that two processes could both want
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def installed() -> bool:
    """Return whether libtpu is there; it is not loaded."""
    return util.find_spec("libtpu") is not None


def version() -> str:
    """Return libtpu's version."""
    return metadata.version("libtpu")


def devices(topology: str) -> list[Any]:
    """Return the devices of "v5p:8x8x16" or "2xv5e:4x4", to compile for.

    Nothing can run on them. Raises BusyError with the remedy if it can't be.
    """
    if not installed():
        raise BusyError(f"compiling for {topology} needs {NAME}, which is not installed: {INSTALL}")
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    slices, one = chips.slices_of(topology)
    sizes = [int(size) for size in one.partition(":")[2].split("x")]
    host = [2 if size % 2 == 0 else 1 for size in sizes[:2]] + [1] * (len(sizes) - 2)
    bounds = host + [1] * (3 - len(host))
    # Both cores of a v4 make one device, as they do on the machine; libtpu's default is two.
    more = {"chip_config_name": "megacore"} if one.startswith("v4") else {}
    options = {"chips_per_host_bounds": bounds, "num_slices": slices} | more
    try:
        return list(topologies.get_topology_desc(one, "tpu", **options).devices)
    except JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise BusyError(f"{NAME} {version()} knows no topology {topology}: {reason}") from error

"""What a run finds on this machine, as plain data: versions, devices, flags, memory, clock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import locale
import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import jaxgen
from jaxgen import settings as sets
from jaxgen.files import human
from jaxgen.mesh.group import Group
from jaxgen.run import peers
from jaxgen.run.settings import Settings

Facts = dict[str, dict[str, Any]]

NEEDED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece",
    "safetensors",
)  # fmt: skip
DRIVERS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
FLAGS = ("JAX", "XLA", "LIBTPU", "TPU_", "NCCL_", "CUDA_VISIBLE", "SLURM_PROCID", "SLURM_NTASKS")
# Device files by which an accelerator can be seen without its driver.
HARDWARE = {"NVIDIA GPU": "/dev/nvidia[0-9]*", "TPU": "/dev/accel[0-9]*", "AMD GPU": "/dev/kfd"}
PORT = 8476  # of the coordinator, by custom


def examine(
    settings: Settings | None, cache: Path, environment: Mapping[str, str], group: Group
) -> list[Facts]:
    """Return the facts of each process of the group, in their order; all get all.

    settings: whose digest is compared; cache: the folder of prepared text and compiled programs.
    """
    own = facts(settings, cache, environment)
    if group.count > 1:
        group.barrier("clocks")
    # Read at the same moment everywhere, but for the way of the message that says so.
    own["clock"]["seconds"] = time.time()
    if group.count == 1:
        return [own]
    answer = group.sync("doctor", json.dumps(own), lambda values: f"[{','.join(values)}]")
    return json.loads(answer)


def facts(settings: Settings | None, cache: Path, environment: Mapping[str, str]) -> Facts:
    """Return the facts of this process, by section and name."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "flags": {k: v for k, v in sorted(environment.items()) if k.startswith(FLAGS)},
        "memory": _memory(),
        "folders": {
            "here": _folder(Path.cwd()),
            "cache": _folder(cache),
            "programs": _folder(Path(jax.config.values["jax_compilation_cache_dir"] or cache)),
            "temporary": _folder(Path(tempfile.gettempdir())),
        },
        "limits": _limits(),
        "ports": {"coordinator": f"{PORT} {'free' if _is_free(PORT) else 'in use'}"},
        "clock": {"utc": time.strftime("%FT%TZ", time.gmtime()), "files ahead": _ahead(cache)},
        "config": _config(settings),
        "keys": {} if settings is None else peers.keys(settings),
    }


def _versions() -> dict[str, str]:
    versions = {"jaxgen": jaxgen.__version__, "python": platform.python_version()}
    for name in (*NEEDED, *DRIVERS):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _devices() -> dict[str, Any]:
    hardware = [name for name, pattern in HARDWARE.items() if glob(pattern)]
    about: dict[str, Any] = {"host": socket.gethostname(), "cores": _cores(), "hardware": hardware}
    try:
        devices = jax.devices()
    except RuntimeError as error:
        return about | {"error": " ".join(str(error).split())[:300]}
    return about | {
        "backend": jax.default_backend(),
        "kind": devices[0].device_kind,
        "count": len(devices),
        "local": jax.local_device_count(),
        "processes": jax.process_count(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        rows = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}
        sizes |= {"host": rows["MemTotal"], "available": rows["MemAvailable"]}
    with suppress(OSError, ValueError):
        sizes["allowed"] = int(Path("/sys/fs/cgroup/memory.max").read_text())
    with suppress(RuntimeError, AttributeError):
        stats = jax.local_devices()[0].memory_stats() or {}
        names = {"bytes_limit": "device", "bytes_in_use": "device in use"}
        sizes |= {ours: stats[theirs] for theirs, ours in names.items() if theirs in stats}
    return sizes


def _folder(path: Path) -> dict[str, Any]:
    """Return what may be done in a folder, or in the nearest one above it that exists."""
    properties: dict[str, Any] = {"path": str(path), "exists": path.is_dir()}
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        about = path.stat()
        properties |= {"mode": stat.filemode(about.st_mode), "free": shutil.disk_usage(path).free}
        properties["others write"] = bool(
            about.st_mode & stat.S_IWOTH and not about.st_mode & 0o1000
        )
        with tempfile.TemporaryFile(dir=path) as file:
            properties["writable"] = True
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            properties["locks"] = True
    except OSError as error:
        properties |= {
            "writable": properties.get("writable", False),
            "refused": error.strerror or str(error),
        }
    return properties


def _limits() -> dict[str, Any]:
    # Not sys.stdout's: it may be a pipe, but what a terminal takes is the locale's.
    return {
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "encoding": sys.stdout.encoding or locale.getpreferredencoding(False),
    }


def _is_free(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True


def _ahead(cache: Path) -> float | None:
    """Return the seconds by which the clock of the cache's file system is ahead of ours."""
    while not cache.exists() and cache != cache.parent:
        cache = cache.parent
    try:
        with tempfile.NamedTemporaryFile(dir=cache) as file:
            before = time.time()
            os.utime(file.name)
            stamp = os.stat(file.name).st_mtime
            return round(stamp - min(max(stamp, before), time.time()), 3)
    except OSError:
        return None


def _config(settings: Settings | None) -> dict[str, str]:
    digests = {"code": peers.code()}
    if settings is not None:
        digests["settings"] = hashlib.sha256(sets.dump(settings).encode()).hexdigest()
    return digests


def lines(process: Facts) -> dict[str, str]:
    """Return facts as {"section: name": words for people}."""
    return {
        f"{section}: {name}": _words(section, name, value)
        for section, row in process.items()
        for name, value in row.items()
        if section != "keys" and name != "seconds"  # for comparing only
    }


def _words(section: str, name: str, value: Any) -> str:
    if section == "memory":
        return human(value)
    if section == "folders":
        return _folder_words(value)
    if section == "config":
        return value[:16]
    if name == "files ahead":
        return "unknown" if value is None else f"{value} s"
    if isinstance(value, list):
        return ", ".join(value) or "no accelerator"
    return str(value)


def _folder_words(row: Mapping[str, Any]) -> str:
    state = "" if row["exists"] else " (not there yet)"
    refused = f", {row['refused']}" if "refused" in row else ""
    free = f", {human(row['free'])} free" if "free" in row else ""
    return f"{row['path']}{state} {row.get('mode', '')}{free}{refused}"

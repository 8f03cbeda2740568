"""Known traps, found in the facts of a machine: each is said with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jaxgen.files import human
from jaxgen.verify.doctor import Facts

ROOM = 1 << 30  # bytes; less free disk or memory than this ends runs
FILES = 1024  # open files that a run with workers and events may need
SKEW = 1.0  # seconds between clocks, from which logs and file times of hosts mislead
INSTALL = {
    "NVIDIA GPU": 'pip install "jax[cuda13]"',
    "TPU": 'pip install "jax[tpu]"',
    "AMD GPU": 'pip install "jax[rocm7-local]"',
}
DERIVED = {"settings", "SLURM_PROCID"}  # the keys say which; each process has its own
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
# Environment variables, the value that is a trap (None: any), and why.
VARIABLES: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "JAX_DISABLE_JIT": (("1", "true"), "nothing is compiled, and everything is slow"),
    "JAX_DEBUG_NANS": (("1", "true"), "each step is checked and made again; the guard does it"),
    "JAX_ENABLE_X64": (("1", "true"), "what has no dtype of its own takes 64 bits"),
    "JAX_THREEFRY_PARTITIONABLE": (
        ("0", "false"),
        "random numbers, and so dropout and initial weights, depend on the mesh",
    ),
    "JAX_DEFAULT_PRNG_IMPL": (("rbg", "unsafe_rbg"), "keys drawn by jax.random.key differ by mesh"),
    "JAX_DEFAULT_MATMUL_PRECISION": (None, "products round otherwise than in other runs"),
}


def find(processes: Sequence[Facts]) -> list[str]:
    """Return a warning in words for each trap; of several processes, with the one it is in."""
    warnings = []
    for index, facts in enumerate(processes):
        where = f"process {index} on {facts['devices']['host']}: " if len(processes) > 1 else ""
        warnings += [where + words for trap in TRAPS for words in trap(facts)]
    return warnings + list(_between(processes))


def _accelerator(facts: Facts) -> Iterator[str]:
    devices = facts["devices"]
    if "error" in devices:
        named = facts["flags"].get("JAX_PLATFORMS")
        fix = f"; unset or correct JAX_PLATFORMS={named}" if named else ""
        yield f"no device can be used: {devices['error']}{fix}"
    elif devices["hardware"] and devices["backend"] == "cpu":
        if facts["flags"].get("JAX_PLATFORMS") == "cpu":
            yield f"JAX_PLATFORMS=cpu leaves the {devices['hardware'][0]} unused"
        else:
            name = devices["hardware"][0]
            yield f"there is a {name}, but JAX runs on the CPU: {INSTALL[name]}"


def _versions(facts: Facts) -> Iterator[str]:
    versions = facts["versions"]
    jax, jaxlib = (versions[name].split(".")[:2] for name in ("jax", "jaxlib"))
    if jax != jaxlib:
        yield (
            f"jax {versions['jax']} and jaxlib {versions['jaxlib']} don't belong together: "
            f"pip install -U jax jaxlib"
        )
    if all(name in versions for name in PLUGINS):
        yield f"{' and '.join(PLUGINS)} are both installed: uninstall that of the older driver"


def _flags(facts: Facts) -> Iterator[str]:
    flags = facts["flags"]
    for name, (values, why) in VARIABLES.items():
        if name in flags and (values is None or flags[name].lower() in values):
            yield f"{name}={flags[name]}: {why}; unset it"
    xla = flags.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in xla or "JAX_NUM_CPU_DEVICES" in flags:
        yield "several devices are made of one CPU: good for tests, slow for training"
    if "xla_backend_optimization_level" in xla:
        yield "XLA_FLAGS sets xla_backend_optimization_level: slower, with other roundings"


def _folders(facts: Facts) -> Iterator[str]:
    for name, row in facts["folders"].items():
        if not row["writable"]:
            remedy = "; set JAXGEN_CACHE to one that can" if name in ("cache", "programs") else ""
            yield f"{row['path']} can't be written ({row.get('refused')}){remedy}"
        elif not row.get("locks"):
            yield f"{row['path']} is on a file system without locks: two runs could share a folder"
        if row.get("free", ROOM) < ROOM:
            yield f"{row['path']} has {human(row['free'])} left: free some before a save fails"
        if row["exists"] and row.get("others write") and name in ("cache", "programs"):
            yield (
                f"anybody may write to {row['path']} ({row['mode']}), and compiled programs are "
                f"run from there: chmod o-w {row['path']}"
            )


def _rest(facts: Facts) -> Iterator[str]:
    memory, limits = facts["memory"], facts["limits"]
    if memory.get("available", ROOM) < ROOM:
        yield f"{human(memory['available'])} of memory are available: end other programs"
    if 0 <= limits["open files"] < FILES:
        yield f"{limits['open files']} files may be open at once: ulimit -n {FILES}"
    if limits["encoding"].lower().replace("-", "") != "utf8":
        yield f"the terminal takes {limits['encoding']}, so texts are shown escaped: LANG=C.UTF-8"
    ahead = facts["clock"]["files ahead"]
    if ahead is not None and abs(ahead) > SKEW:
        yield f"the clock of the cache's file system is {ahead} s ahead of this machine's: use NTP"


def _between(processes: Sequence[Facts]) -> Iterator[str]:
    """What must be alike in all processes, and is not."""
    first = processes[0]
    for section in ("versions", "flags", "config", "keys"):
        for name in sorted({name for facts in processes for name in facts[section]} - DERIVED):
            values = [facts[section].get(name) for facts in processes]
            if any(value != values[0] for value in values):
                odd = next(i for i, value in enumerate(values) if value != values[0])
                yield (
                    f"{section}: {name} is {_short(values[0])} in process 0 and "
                    f"{_short(values[odd])} in process {odd}"
                )
    kinds = [facts["devices"].get("kind") for facts in processes]
    if len(set(kinds)) > 1:
        yield f"the processes have different devices: {', '.join(map(str, kinds))}"
    offsets = [facts["clock"]["seconds"] - first["clock"]["seconds"] for facts in processes]
    if max(offsets) - min(offsets) > SKEW:
        yield f"the clocks of the hosts are {max(offsets) - min(offsets):.1f} s apart: use NTP"


def _short(value: str | None) -> str:
    return "unset" if value is None else value[:40]


TRAPS: tuple[Callable[[Facts], Iterator[str]], ...] = (
    _accelerator,
    _versions,
    _flags,
    _folders,
    _rest,
)

"""The whole suite runs under jaxtyping and beartype: a wrong shape in a signature is an error."""

import ctypes
import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most of a test's time is compiling; what users run, optimised in full, is tested in tests/run.
# Its loops are emitted in the old way, twice as fast to compile, where jaxlib still has it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Processes that tests start would else compile the package's modules again, each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("COLUMNS", None)  # what is captured is printed as into a file, however wide we are

import pytest
import shape_checks
from memory_bucket import bucket  # noqa: F401 - a fixture

MEMORY = 2 * 2**30  # bytes of a worker, after which it forgets its programs
MAPS = 25_000  # of the 65,530 pieces of memory that Linux lets a process map

# A program is compiled once for all tests, workers and processes that tests start. In a folder that
# the caller names it is kept for the next time as well. JAX reads this when it is imported.
CACHE, PROGRAMS = "JAX_COMPILATION_CACHE_DIR", None
if CACHE not in os.environ:
    PROGRAMS = os.environ[CACHE] = tempfile.mkdtemp(prefix="programs-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
assert "jax" not in sys.modules

shape_checks.install()
# Tracing makes and drops so many objects that Python looked for dead circles 2,000 times a minute.
gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure():
    if PROGRAMS is not None:  # in the workers it is there before they start
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Let a test's `xdist_group` take effect, so that one worker makes its fixtures, once.

    xdist 3.8 tells the groups by `_nodeid`, where pytest 9.2 no longer looks: ids are in `_id`.
    """
    for item in items:
        said = getattr(item, "_nodeid", item.nodeid)
        if item.get_closest_marker("xdist_group") and said != item.nodeid:
            item._id = type(item._id).parse(said)


@pytest.fixture(autouse=True, scope="session")
def machine_is_measured_quickly():
    """Take a 60th of the work to tell what this machine reaches, which hardly changes the share."""
    from jaxgen.profile import limits

    limits.SIZES["cpu"] = (512, 2**22)


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """Forget compiled programs before they are too many: 2 MB each, and maps until XLA crashes."""
    yield
    maps, pages = Path("/proc/self/maps"), Path("/proc/self/statm")
    if "jax" not in sys.modules or not maps.exists():
        return
    size = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    if size > MEMORY or maps.read_bytes().count(b"\n") > MAPS:
        sys.modules["jax"].clear_caches()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # else glibc keeps what was freed
            trim(0)

"""The whole suite runs under jaxtyping and beartype: a wrong shape in a signature is an error."""

import ctypes
import faulthandler
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
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
from compilations import compiled  # noqa: F401 - a fixture
from memory_bucket import bucket  # noqa: F401 - a fixture

MEMORY = 2 * 2**30  # bytes of a worker, after which it forgets its programs
MAPS = 25_000  # of the 65,530 pieces of memory that Linux lets a process map
# Seconds that each phase of a test may take, none of a night's; the end of a `with` or of a fixture
# that hangs then as well is given as long as AGAIN. What never comes back to Python, faulthandler
# (pyproject.toml) ends a little later, with its worker.
LIMIT = float(os.environ.get("JAXGEN_TEST_LIMIT", 300))
AGAIN = 5.0
STALE = 86400.0  # seconds after which programs are those of a session that was killed
hung = []  # ids of the tests that took longer

# A program is compiled once for all tests, workers and processes that tests start. In a folder that
# the caller names it is kept for the next time as well. JAX reads this when it is imported.
CACHE, PROGRAMS = "JAX_COMPILATION_CACHE_DIR", None
if CACHE not in os.environ:
    for old in Path(tempfile.gettempdir()).glob("programs-*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old)
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
    if hung:  # Python would wait at its end for the threads that still hang
        faulthandler.dump_traceback_later(AGAIN, exit=True)


def _limited(item):
    def stop(number, frame):
        hung.append(item.nodeid)
        faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"no end after {LIMIT:g} s; the stacks of all threads are in its stderr")

    if "JAXGEN_NIGHTLY" in os.environ:
        faulthandler.cancel_dump_traceback_later()
        return (yield)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, AGAIN)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_limited)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_limited)
pytest_runtest_teardown = pytest.hookimpl(wrapper=True)(_limited)


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

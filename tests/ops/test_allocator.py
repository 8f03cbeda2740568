"""What the C library is told, seen in the page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

BEGIN = """
import ctypes, resource, sys, threading
import jax
from jaxgen.ops.cpu import allocator
if sys.argv[1] == "tuned":
    assert allocator.tune()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
"""
FAULTS = """

def rounds(number, size):
    for _ in range(number):
        block = libc.malloc(size)
        libc.memset(block, 1, size)
        libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

size = 2**26
for run in (lambda: rounds(4, size), lambda: in_thread(lambda: rounds(4, size))):
    def in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    run()
    before = faults()
    run()
    print((faults() - before) * 4096 // size)
"""


def told(script, how):
    """Return the numbers that a process prints."""
    words = [sys.executable, "-c", BEGIN + script, how]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
@pytest.mark.parametrize(("how", "wanted"), [("tuned", 0), ("plain", 4)])
def test_tuned_memory_is_faulted_in_once_and_in_every_thread(how, wanted):
    assert told(FAULTS, how) == [wanted, wanted]


COMPILED = """
# What a compilation leaves: pieces free between others that are not.
blocks = [libc.malloc(2**16) for _ in range(2**10)]
for block in blocks:
    libc.memset(block, 1, 2**16)
for block in blocks[::2]:
    libc.free(block)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

for seconds in (0.1, 10.0):
    before = resident()
    jax.monitoring.record_event_duration_secs(allocator.COMPILED, seconds)
    print(round(before - resident()))
before = resident()
for block in blocks[1::2]:
    libc.free(block)
allocator.give_back()
print(round(before - resident()))
f = jax.jit(lambda x: x + 1)
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
f(1)
print(int(allocator.COMPILED in seen))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
@pytest.mark.parametrize(("how", "mib"), [("tuned", 32), ("plain", 0)])
def test_what_a_long_compilation_took_is_given_back(how, mib):
    short, long, asked, known = told(COMPILED, how)
    assert short == 0
    assert abs(long - mib) <= mib // 4
    assert abs(asked - (64 - mib)) <= 8
    assert known

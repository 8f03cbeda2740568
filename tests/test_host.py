"""What the C library is told, seen in the page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys, threading
from jaxgen import host
if sys.argv[1] == "tuned":
    assert host.tune()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
@pytest.mark.parametrize(("how", "wanted"), [("tuned", 0), ("plain", 4)])
def test_tuned_memory_is_faulted_in_once_and_in_every_thread(how, wanted):
    words = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wanted), str(wanted)]

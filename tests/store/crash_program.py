"""Saves steps until it is killed, or kills itself at a stage of its fourth save.

crash_program.py FOLDER STAGE FIRST COUNT    STAGE none: it isn't killed
"""

import os
import signal
import sys

import numpy as np

from jaxgen.store import Checkpoints, RunLock

folder, failpoint, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def die(stage):
    if stage == failpoint and store.armed:
        os.kill(os.getpid(), signal.SIGKILL)


with RunLock(folder + "/.."):
    store = Checkpoints(folder, keep_last=2, keep_best=0, fingerprints={}, failpoint=die)
    store.armed = False
    store.clean()
    for step in range(first, first + count):
        store.armed = step == first + 3
        store.save(step, {"w": np.full(1 << 18, step), "n": step}, {"at": step}, metric=None)
        if failpoint != "none":
            store.wait()
        print(step, flush=True)

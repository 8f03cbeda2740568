"""Processes that are forked where JAX is imported already, instead of importing it again.

What such a process lacks of `python PROGRAM` is the interpreter's start and end, and the imports.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path

PRELOADED = ["jaxgen.run.training", "jaxgen.cli.app", "orbax.checkpoint", "grain", "rich.progress"]


def run_program(words):
    """Run `python WORDS...` here: a file or -m MODULE, and its arguments."""
    sys.argv = [str(word) for word in words]
    if sys.argv[0] == "-m":
        sys.argv.pop(0)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


def _enter(target, arguments, output, environment, folder):
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    try:
        code = target(*arguments)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


class Process:
    """A process that calls target(*arguments), and writes into a file what it says."""

    def __init__(self, target, arguments, output, environment=None, folder="."):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.output = Path(output)
        # JAX has read its own environment when it was imported; this is for all else.
        environment = dict(os.environ if environment is None else environment)
        given = (target, arguments, str(output), environment, str(Path(folder).absolute()))
        self.process = context.Process(target=_enter, args=given)
        self.process.start()
        self.pid = self.process.pid
        # Else the tests would wait at their end for what a test that failed has left.
        atexit.register(lambda: self.poll() is None and self.kill())

    def said(self):
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self, timeout=600.0):
        """Wait for the end and return (exit code, what it has said)."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.said()
        return self.process.exitcode, self.said()


def program(words, environment=None, folder="."):
    """Start `python WORDS...`."""
    output = tempfile.NamedTemporaryFile(prefix="said-")  # noqa: SIM115
    process = Process(run_program, (words,), output.name, environment, folder)
    process.file = output  # which is there as long as the process
    return process

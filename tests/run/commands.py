"""The command line as a process that is forked where JAX is imported already; and its plants.

What such a process lacks of `python -m jaxgen` is the interpreter's start and the imports. A plant
makes one place of it so slow that a signal surely comes there.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

PRELOADED = ["jaxgen.run.training", "jaxgen.cli.app", "orbax.checkpoint", "grain", "rich.progress"]


def stuck():
    """Half a minute in C code, where Python handles no signal."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)


def said(what):
    print(f"planted: {what}", flush=True)


def stuck_preparing():
    from jaxgen.run import inputs

    inputs.make_tokenizer = lambda settings: (said("preparing"), stuck())


def stuck_compiling():
    from jaxgen.run import step

    assert step.train_step
    step.train_step = lambda *_, **__: (said("compiling"), stuck())


def stuck_validating():
    from jaxgen.run import job

    job.validate = lambda *_, **__: (said("validating"), stuck())


def endless_validating(call):
    """The validation of this number takes for ever, but looks whether to stop."""
    from jaxgen.run import job

    whole, calls = job.validate, []

    def slow(params, config, rows, widths):
        calls.append(call)

        def slowly():
            for row in rows:
                while len(calls) == call:
                    said("validating")
                    time.sleep(0.2)
                    yield row
                yield row

        return whole(params, config, slowly() if len(calls) == call else rows, widths)

    job.validate = slow


def slow_training(seconds=0.2):
    """Each step takes a while, so that whoever looks can act before the next ones."""
    from jaxgen.data.loader import Batches

    whole = Batches.__next__

    def slow(batches):
        time.sleep(seconds)
        return whole(batches)

    Batches.__next__ = slow


def stuck_sampling():
    from jaxgen.text.session import Session

    Session.run = lambda *_, **__: (said("sampling"), stuck())


def slow_saving():
    from jaxgen.store import arrays

    whole = arrays.write_arrays

    def slow(*given):
        slow_training(0.5)
        said("saving")
        time.sleep(0.5)
        whole(*given)

    arrays.write_arrays = slow


def main(words, output, environment, plant):
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    import jax

    # JAX has read its environment when it was imported.
    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if plant is not None:
        plant()
    from jaxgen.cli import app
    from jaxgen.profile import limits

    limits.SIZES["cpu"] = (512, 2**22)  # tells what the machine reaches in a moment

    try:
        code = app.main(words)
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Command:
    """A process of `jaxgen WORDS...`, as subprocess.Popen has it."""

    def __init__(self, words, output, environment, plant=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.output = Path(output)
        given = ([str(word) for word in words], str(output), environment, plant)
        self.process = context.Process(target=main, args=given)
        self.process.start()
        self.pid = self.process.pid

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

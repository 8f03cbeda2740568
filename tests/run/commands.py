"""The command line as a process that is forked where JAX is imported already; and its plants.

A plant makes one place of it so slow that a signal surely comes there.
"""

import hashlib
import time

import forked


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


def main(words, plant):
    if plant is not None:
        plant()
    from jaxgen.cli import app
    from jaxgen.profile import limits

    limits.SIZES["cpu"] = (512, 2**22)  # tells what the machine reaches in a moment
    return app.main(words)


class Command(forked.Process):
    """A process of `jaxgen WORDS...`, as subprocess.Popen has it."""

    def __init__(self, words, output, environment, plant=None):
        super().__init__(main, ([str(word) for word in words], plant), output, environment)


def measured(here, *words):
    """Return the figures of `jaxgen eval WORDS...`, by name."""
    code, said = here("eval", *words)
    assert code == 0, said
    rows = dict(line.split("  ", 1) for line in said.splitlines() if "  " in line)
    return {name: value.strip() for name, value in rows.items()}

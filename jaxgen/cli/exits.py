"""How a command ends: the exit code of its error, and the one line that explains it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxgen import files
from jaxgen.errors import BUG, INTERRUPTED, BusyError, UserError

MEMORY = (
    "lower train.batch or model.context, raise train.accumulate or choose model.remat; when "
    "generating, ask for fewer --samples or --max-new-tokens"
)


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Name the run folder in which the traceback of an unexpected error belongs.

    None belongs in the folder of a published model, which may be a cache of other programs.
    """
    try:
        yield
    except Exception as error:
        if not os.path.isfile(os.path.join(folder, "config.json")):
            error.run_folder = folder  # pyright: ignore[reportAttributeAccessIssue]
        raise


def report(error: BaseException) -> int:
    """Say an error in one line on standard error and return the exit code it stands for.

    UserError: its own. What the system refuses, memory included: 3. Ctrl-C: 130. A reader that
    has gone away: 0, quietly. Anything else is our mistake: 70, the traceback in a file.
    """
    flush_output()
    if isinstance(error, BrokenPipeError):
        return 0
    code, line = _explain(error)
    with suppress(OSError, ValueError):
        print(f"jaxgen: {line}", file=sys.stderr, flush=True)
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, UserError):
        return error.exit_code, f"error: {_flat(error)}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, MemoryError):
        return BusyError.exit_code, f"error: out of memory; {MEMORY}"
    if isinstance(error, OSError):
        try:
            with files.refusals(error.filename or "a file or stream"):
                raise error
        except BusyError as refusal:
            return refusal.exit_code, f"error: {_flat(refusal)}"
    text = str(error)
    # XLA has no classes for these; its status codes are the stable part of the message.
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        size = text.partition("allocat")[2].partition(".")[0]
        amount = f" allocat{' '.join(size.split())}" if 0 < len(size) < 80 else ""
        return BusyError.exit_code, f"error: the device is out of memory{amount}; {MEMORY}"
    if "Unable to initialize backend" in text:
        return BusyError.exit_code, f"error: {_flat(text)[:300]}; unset or correct JAX_PLATFORMS"
    return BUG, f"bug: {_flat(f'{type(error).__name__}: {text}')[:300]}; {_keep(error)}"


def _keep(error: BaseException) -> str:
    """Write the traceback to the run folder, else to a temporary one; return where it is."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    text = "".join(traceback.format_exception(error))
    for folder in (getattr(error, "run_folder", None), tempfile.gettempdir()):
        if folder is None or not os.path.isdir(folder):
            continue
        path = Path(folder) / name
        try:
            path.write_text(f"jaxgen {' '.join(sys.argv[1:])}\n\n{text}", "utf-8", "replace")
        except OSError:
            continue
        return f"this is our mistake: please report it with {path}"
    return "this is our mistake; its traceback could not be written anywhere"


def _flat(message: object) -> str:
    """Return a message as one line, its control characters shown."""
    text = " ".join(line.strip() for line in str(message).splitlines() if line.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def flush_output() -> None:
    """Write what is left for standard output, or drop it if nobody reads it any more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python would complain about the unwritten rest of its buffer when it ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def steady_streams() -> None:
    """Make standard streams that were closed lead nowhere, and take any character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the process's life
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore

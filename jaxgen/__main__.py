"""`python -m jaxgen` and the `jaxgen` command."""

import atexit
import gc
import os
import sys
import threading

# Imports and tracing make so many objects that Python would look for dead circles a thousand times
# before the first result; they are a tenth of a short command's time.
CIRCLES = (50_000, 20, 50)


def main() -> int:
    """Run the command line and return its exit code."""
    gc.set_threshold(*CIRCLES)
    from jaxgen.cli import app

    code = app.main()
    _end(code)
    return code


def _end(code: int) -> None:
    """End the process as Python does, but for taking a model apart, which takes it a second.

    Where a thread still works that Python would wait for, nothing is done.
    """
    working = (thread for thread in threading.enumerate() if not thread.daemon)
    if any(thread is not threading.main_thread() for thread in working):
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a reader that has gone was told of before
        return
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

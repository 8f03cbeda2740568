"""`python -m jaxgen` and the `jaxgen` command."""

import gc
import sys

# Imports and tracing make so many objects that Python would look for dead circles a thousand times
# before the first result; they are a tenth of a short command's time.
CIRCLES = (50_000, 20, 50)


def main() -> int:
    """Run the command line and return its exit code."""
    gc.set_threshold(*CIRCLES)
    from jaxgen.cli import app

    return app.main()


if __name__ == "__main__":
    sys.exit(main())

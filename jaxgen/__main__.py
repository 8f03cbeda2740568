"""`python -m jaxgen` and the `jaxgen` command."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    from jaxgen.cli import app

    return app.main()


if __name__ == "__main__":
    sys.exit(main())

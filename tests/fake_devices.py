"""Several devices made of one CPU, for processes that a test starts."""

import os


def flags(count: int) -> dict[str, str]:
    """Return the change to an environment that gives JAX so many, with the suite's own flags."""
    own = os.environ["XLA_FLAGS"]
    return {"XLA_FLAGS": f"{own} --xla_force_host_platform_device_count={count}"}

"""What is compiled while a test runs."""

import pytest


@pytest.fixture
def compiled():
    """The names of what is compiled from here on."""
    import jax  # not before conftest.py has said how

    names = []

    def listen(name, seconds, **about):
        if "backend_compile" in name:
            names.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda: 1)()
    assert names  # it is told
    names.clear()
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)

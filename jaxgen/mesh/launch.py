"""Start-up of a run of several processes: rendezvous, `jax.distributed`, and the watch.

The one file that uses JAX's private state: `jax.distributed` has no public access to the key-value
store of its coordination service.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxgen.errors import ConfigError, PeerError
from jaxgen.mesh import pulse, rendezvous
from jaxgen.mesh.group import ALONE, AgreedExit, Group
from jaxgen.mesh.watch import AGAIN, Watch

LEAST = 50  # seconds of silence that JAX's own service bears; its end is abrupt


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process finds the others; ConfigError if that makes no sense.

    coordinator: HOST:PORT, where process 0 listens. devices: local ones that this process may use,
    None for all. start_timeout: seconds that all wait for all; peer_timeout: seconds of silence
    after which a process is taken for lost; stall_timeout: seconds without a step of any process
    after which those that are behind are taken for stuck. token: a secret that all have.
    """

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None
    start_timeout: float = 300.0
    peer_timeout: float = 30.0
    stall_timeout: float = 1800.0
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"--processes {self.processes} must be at least 1")
        if not 0 <= self.process < self.processes:
            raise ConfigError(
                f"--process {self.process} is not one of the {self.processes} processes, which are "
                f"0 to {self.processes - 1}"
            )
        for name in ("start_timeout", "peer_timeout", "stall_timeout"):
            if not 1 <= getattr(self, name) <= 86400:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)} must be 1 to 86400 seconds")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--coordinator {self.coordinator!r} is no HOST:PORT, as in 10.0.0.1:8476"
            )

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


@contextmanager
def joined(launch: Launch | None) -> Iterator[Group]:
    """Yield the group that this process belongs to; to be entered before any device is used.

    Raises PeerError if not all come, BusyError if the port is taken, ConfigError if the processes
    contradict each other. However the block ends, the others hear of it.
    """
    if launch is None or launch.processes == 1:
        yield ALONE
        return
    names = rendezvous.wait_for_all(
        *(*launch.address, launch.processes, launch.process, launch.start_timeout),
        token=launch.token,
    )
    watch = Watch(
        launch.process,
        names,
        launch.coordinator,
        timeout=launch.peer_timeout,
        stall=launch.stall_timeout,
    )
    watch.guard_aborts()
    store = _connect(launch, watch.coordinator)
    group = Group(
        index=launch.process,
        count=launch.processes,
        names=names,
        store=store,
        progress=watch.progress,
    )
    stopped: AgreedExit | None = None
    with pulse.running(pulse.own_address(*launch.address)) as address, watch.over(store, address):
        try:
            yield group
        except AgreedExit as decision:
            stopped = decision
        group.barrier("the end")
    jax.distributed.shutdown()
    if stopped is not None:
        raise stopped


def _connect(launch: Launch, keeper: str) -> _Store:
    # Its handler of SIGTERM would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process,
            local_device_ids=launch.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(launch.start_timeout),
            # Ours is sooner, and says who is lost.
            heartbeat_timeout_seconds=max(LEAST, int(1.5 * launch.peer_timeout)),
            shutdown_timeout_seconds=int(launch.peer_timeout),
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise PeerError(
            f"JAX could not connect the processes at {launch.coordinator}: {reason}; start "
            "all again"
        ) from error
    from jax._src import distributed

    return _Store(distributed.global_state.client, keeper)


class _Store:
    """JAX's coordination service as a `group.Store`, kept by process 0."""

    def __init__(self, client: Any, keeper: str) -> None:
        self.client, self.keeper = client, keeper

    def set(self, key: str, value: str) -> None:
        self._asked(lambda: self.client.key_value_set(key, value, allow_overwrite=True))

    def get(self, key: str, seconds: float) -> str | None:
        limit = max(1, int(seconds * 1000))
        return self._asked(lambda: self.client.blocking_key_value_get(key, limit))

    def find(self, prefix: str) -> dict[str, str]:
        return dict(self._asked(lambda: self.client.key_value_dir_get(prefix)) or [])

    def delete(self, prefix: str) -> None:
        self._asked(lambda: self.client.key_value_delete(prefix))

    def _asked(self, question: Any) -> Any:
        try:
            return question()
        except jax.errors.JaxRuntimeError as error:
            text = str(error)
            if text.startswith(("DEADLINE_EXCEEDED", "NOT_FOUND")):
                return None
            reason = " ".join(text.split())[:120]
            raise PeerError(f"{self.keeper} is lost: no answer ({reason}); {AGAIN}") from error

"""Checkpoints that are whole or absent, verified when read; and the lock of a run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.store.checkpoints import Checkpoints, Restored
    from jaxgen.store.lock import RunLock
    from jaxgen.store.settings import CheckpointSettings

_HOME = {
    "CheckpointSettings": "settings",
    "Checkpoints": "checkpoints",
    "Restored": "checkpoints",
    "RunLock": "lock",
}

__all__ = ["CheckpointSettings", "Checkpoints", "Restored", "RunLock"]

__getattr__, __dir__ = lazy.names(__name__, _HOME)

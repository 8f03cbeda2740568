"""Checkpoints that are whole or absent, verified when read; and the lock of a run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.store.checkpoints import Checkpoints, Restored
    from jaxgen.store.lock import RunLock, lock_of
    from jaxgen.store.settings import CheckpointSettings

__all__ = ["CheckpointSettings", "Checkpoints", "Restored", "RunLock", "lock_of"]

__getattr__, __dir__ = lazy.attach(__name__)

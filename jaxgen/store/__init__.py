"""Checkpoints that are whole or absent, verified when read; and the lock of a run's folder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f"jaxgen.store.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jaxgen.store' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOME])

"""Where arrays live: the mesh of devices, the rules that lay logical axes on it, and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.mesh.place import constrain, fetch, gather, shards, under
    from jaxgen.mesh.settings import MeshSettings

__all__ = ["MeshSettings", "constrain", "fetch", "gather", "shards", "under"]

__getattr__, __dir__ = lazy.attach(__name__)

"""Training: state, optimizer, schedule, losses, the step and the loop.

The package can be called as well: `jaxgen.train("my.txt")` trains as `jaxgen train my.txt` does,
and returns the folder of the run, see `cli.notebook.train`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package whose name is also that of a function, which lies above it and is loaded late."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("jaxgen.cli.notebook").train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

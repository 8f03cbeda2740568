"""Public names that a package loads on first use, so that importing it costs nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: ModuleType, module: str, name: str) -> None:
    """Let a package be called as the function `name` of a module, which is imported on first use.

    Needed where both have one name: importing anything below the package binds it to its parent.
    """

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(module), name)(*args, **kwargs)

    package.__class__ = CallablePackage


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return (__getattr__, __dir__) for a package whose names are imported on first use.

    The names and their modules are those that the package imports under `if TYPE_CHECKING:`, so a
    type checker and the interpreter read one list. Raises ImportError where the source was not
    shipped beside the compiled file.
    """
    loader = getattr(sys.modules[package].__spec__, "loader", None)
    source = getattr(loader, "get_source", lambda name: None)(package)
    if source is None:
        raise ImportError(f"{package} was installed without its source; install it with *.py files")
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    home = {
        alias.asname or alias.name: (line.module or "", alias.name)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, inside = home[name]
        value = getattr(import_module(module), inside)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return load, names

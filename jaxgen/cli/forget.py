"""`jaxgen forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import paths
from jaxgen.errors import ConfigError


def forget(
    user: Annotated[str, Parameter(help="the name of the user's folder")],
    /,
    *,
    users: Annotated[str, Parameter(help="the folder that the users' folders are in")] = "users",
) -> None:
    """Remove a user, and say what was removed: every file, its size and its sha256.

    Each file is overwritten and removed. Then the folder of the users and the
    cache are searched for the same bytes; a copy is named, with exit code 4. What
    another user has in the same place is theirs.

    For example:
        jaxgen forget ann --users data/users
    """
    from jaxgen.text import users as known

    home = Path(users)
    if not home.is_dir():
        raise ConfigError(f"--users {users} is no folder; give the one that {user} is in")

    def show(removed: list[known.Removed]) -> None:
        rows = [(str(one.path), f"{one.size:,} bytes, sha256 {one.sha256}") for one in removed]
        terminal.print_rows([*rows, ("removed", f"{len(removed)} files")])

    known.forget(home, user, among=[paths.cache()], shown=show)
    terminal.print_rows([("copies", "none in the folder of the users or in the cache")])

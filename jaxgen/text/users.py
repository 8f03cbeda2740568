"""Users of one model: each an adapter, a system prompt and preferences, in a small folder."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen import files
from jaxgen import settings as sets
from jaxgen.adapters import bank as banks
from jaxgen.adapters.bank import Bank
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.pretrained import adapted
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import DEFAULTS, Generation

FILE, ADAPTER, FORM = "user.json", "adapter", "adapter_config.json"
MAX_FILE = 1 << 20
KEYS = ("system", "settings", "bias")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RANK = 8  # of a bank that is opened before there is a user


@dataclass(frozen=True)
class User:
    """What is known of a user.

    Attributes:
        name: of the folder.
        adapter: the folder of PEFT inside it, if there is one.
        system: what the system says before a chat that begins otherwise.
        settings: preferences by the names of `Generation`, where a request says nothing.
    """

    name: str
    adapter: Path | None = None
    system: str | None = None
    settings: Generation = Generation()


class Removed(NamedTuple):
    """A file that was overwritten and removed."""

    path: Path
    size: int
    sha256: str


def read_user(home: Path, name: str) -> User:
    """Return a user: NAME/user.json, with "system", "settings" and "bias", and NAME/adapter/.

    Raises ConfigError for a name that is none here, CheckpointError for a damaged folder.
    """
    folder = _folder(home, name)
    path, about = folder / FILE, {}
    if path.exists():
        about = files.read_json(path, "user", MAX_FILE)
    if unknown := [key for key in about if key not in KEYS]:
        raise CheckpointError(
            f"{path}: unknown key {unknown[0]!r}{nearest(unknown[0], KEYS)}; a user has "
            f"{', '.join(KEYS)}"
        )
    system, bias = about.get("system"), about.get("bias") or {}
    if not isinstance(system, str | None) or not isinstance(bias, dict):
        raise CheckpointError(f"{path}: system is a text, and bias maps texts to numbers")
    given = dict(about.get("settings") or {})
    if bias:
        given["bias"] = [f"{text}={number}" for text, number in bias.items()]
    try:
        settings = sets.build(Generation, given, "settings")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    adapter = folder / ADAPTER
    return User(name, adapter if adapter.is_dir() else None, system, settings)


def names(home: Path) -> list[str]:
    """Return the users of a folder."""
    return sorted(path.name for path in home.iterdir() if path.is_dir() and NAME.match(path.name))


def forget(
    home: Path,
    name: str,
    *,
    among: Sequence[Path] = (),
    shown: Callable[[list[Removed]], object] = lambda removed: None,
) -> list[Removed]:
    """Remove a user's folder, and prove it: each file is overwritten, removed, and looked for.

    Args:
        home: the folder of the users.
        name: of the user.
        among: further folders, such as the cache, in which copies are looked for.
        shown: told what was removed, before copies are looked for.

    Returns:
        What was removed, with sizes and hashes. Raises ConfigError for a user that is none, and
        CheckpointError that names a copy of a file of theirs which lies elsewhere.
    """
    folder, removed = _folder(home, name), []
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
        else:
            removed.append(Removed(path, path.stat().st_size, files.digest(path)))
            _overwrite(path)
            path.unlink()
    folder.rmdir()
    files.sync_folder(home)
    removed.sort()
    shown(removed)
    for place in (home, *among):
        _check_gone(folder, removed, place)
    return removed


def _check_gone(folder: Path, removed: Sequence[Removed], place: Path) -> None:
    """Raise CheckpointError that names a copy, in a place, of a file which a user had."""
    # The form of an adapter says nothing of a user, and others have the same.
    personal = [one for one in removed if one.size and one.path.name != FORM]
    known = {(one.size, one.sha256) for one in personal}
    sizes = {size for size, _ in known}
    # What another user has in the same place is theirs, were it equal to the last byte.
    own = {one.path.relative_to(folder).parts for one in removed}
    for path in place.rglob("*") if place.is_dir() else ():
        if path.is_symlink() or not path.is_file() or path.stat().st_size not in sizes:
            continue
        if place == folder.parent and path.relative_to(place).parts[1:] in own:
            continue
        if (path.stat().st_size, files.digest(path)) in known:
            raise CheckpointError(
                f"{folder} is removed, but {path} holds the same bytes as a file of it; remove "
                f"that too"
            )


def _overwrite(path: Path) -> None:
    if path.stat().st_nlink > 1:  # the bytes are another file's as well
        return
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())


def _folder(home: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"user {name!r:.80} is no name: letters, digits, '.', '_' and '-', at most 128"
        )
    folder = home / name
    if not folder.is_dir() or folder.is_symlink():
        known = names(home) if home.is_dir() else []
        there = f"; there are {', '.join(known[:8])}" if known else f"; {home} has none"
        raise ConfigError(f"user {name}: no such user{nearest(name, known) or there}")
    return folder


class Users:
    """The users of a folder beside one model, so many of their adapters in memory at once.

    Those that were used longest ago make room for others. Nothing is compiled anew when users come
    and go.
    """

    def __init__(
        self,
        home: str | os.PathLike,
        model: LoadedModel,
        *,
        capacity: int = 64,
        rank: int | None = None,
        targets: Sequence[str] | None = None,
    ) -> None:
        """Open a folder of users.

        Args:
            home: the folder; one that holds none yet is made room for as rank and targets say.
            model: of all of them.
            capacity: adapters in memory at once, 1 or more.
            rank: largest of an adapter; None: of those there are, or 8.
            targets: globs of weights; None: those of the adapters there are, or all-linear.

        Raises:
            ConfigError: for a folder that is none. CheckpointError: for an adapter of another base.
        """
        self.home, self.model = Path(home), model
        if not self.home.is_dir():
            raise ConfigError(f"users={home} is no folder; make it, with a folder for each user")
        if capacity < 1:
            raise ConfigError(f"capacity={capacity} must be at least 1")
        own: dict[str, None] = {}
        largest, kinds = 0, {"lora"}
        for name in names(self.home):
            if (adapter := self._adapter(read_user(self.home, name))) is not None:
                own |= dict.fromkeys(adapter.targets)
                kinds |= {adapter.kind} & banks.KINDS.keys()
                ranks = [int(np.max(ranks)) for ranks in adapter.ranks.values()]
                largest = max([largest, *ranks])
        self.bank: Bank = banks.empty(
            *(model.config, capacity, rank or largest or RANK),
            tuple(targets or own or ("all-linear",)),
            kinds=sorted(kinds),
        )
        self.slots: OrderedDict[str, int] = OrderedDict()  # the one used longest ago comes first
        self.serials: dict[str, int] = {}  # of those in memory: another for each time it was read
        self._reads = 0

    def read(self, name: str) -> User:
        """Return a user; see `read_user`."""
        return read_user(self.home, name)

    def params(self, params: Any, wanted: Sequence[str | None]) -> Any:
        """Return the parameters for a batch whose rows belong to these users; None: nobody."""
        distinct = dict.fromkeys(name for name in wanted if name is not None)
        if len(distinct) > self.bank.capacity - 1:
            raise ConfigError(
                f"{len(distinct)} users in one batch are more than capacity="
                f"{self.bank.capacity - 1}; open them with more, or give a smaller batch"
            )
        for name in distinct:
            if name in self.slots:
                self.slots.move_to_end(name)
        for name in distinct:
            if name not in self.slots:
                self._load(name)
        slots = np.asarray([self.slots.get(name or "", 0) for name in wanted], np.int32)
        return banks.around(params, self.bank, slots, self.model.config)

    def forget(self, name: str, *, among: Sequence[Path] = ()) -> list[Removed]:
        """Remove a user from the disk and from memory; see `forget`."""
        try:
            return forget(self.home, name, among=among)
        finally:  # also where a copy is found
            self.drop(name)

    def drop(self, name: str) -> None:
        """Take a user's adapter out of memory: the slot is emptied, and looked at."""
        self.serials.pop(name, None)
        slot = self.slots.pop(name, 0)
        if slot:
            self.bank = banks.write(self.bank, self.model.config, slot, None, name)
            assert banks.is_empty(self.bank, self.model.config, slot), name

    def _load(self, name: str) -> None:
        user = self.read(name)
        adapter = self._adapter(user)
        if adapter is None:
            return
        used = set(self.slots.values())
        free = next((slot for slot in range(1, self.bank.capacity) if slot not in used), None)
        if free is None:
            oldest, free = self.slots.popitem(last=False)
            del self.serials[oldest]
        self.bank = banks.write(
            *(self.bank, self.model.config, free, adapter, f"user {name}"),
            params=self.model.params,
        )
        self._reads += 1
        self.slots[name], self.serials[name] = free, self._reads

    def warm_up(self) -> None:
        """Compile what writes an adapter; nobody may be in memory yet."""
        assert not self.slots
        self.bank = banks.write(self.bank, self.model.config, 1, None, "nobody")

    def _adapter(self, user: User) -> Any:
        if user.adapter is None:
            return None
        if self.model.home is None:
            raise ConfigError("the model comes from no folder, so no adapter is known to fit it")
        return adapted.read_for(user.adapter, self.model.config, self.model.home)


def preferred(user: User, asked: Generation) -> Generation:
    """Return the settings of a request, a user's preferences where it says nothing."""
    own = {name: value for name, value in vars(user.settings).items() if value != DEFAULTS[name]}
    given = {name for name in own if asked.gives(name) and name != "bias"}
    more: dict[str, Any] = {name: value for name, value in own.items() if name not in given}
    if "bias" in own:
        more["bias"] = (*own["bias"], *asked.bias)
    return replace(asked, **more) if more else asked


def with_system(user: User, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return a chat that begins with what the user's system says, unless it has its own."""
    begins = bool(messages) and messages[0].get("role") == "system"
    if user.system is None or begins:
        return messages
    return [{"role": "system", "content": user.system}, *messages]

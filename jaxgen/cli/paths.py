"""Where things are: configs by name, run folders, the cache. The environment is read here only."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import ConfigError, nearest
from jaxgen.pretrained import sources
from jaxgen.store.steps import Step, run_and_step

RUNS = Path("runs")
CONFIGS = Path("configs")
SUFFIXES = (".yaml", ".yml")
GLOB = re.compile(r"[*?]|\[.+\]")


def cache() -> Path:
    """Return the folder of prepared text and compiled programs; it need not exist.

    $JAXGEN_CACHE, else $XDG_CACHE_HOME/jaxgen, else ~/.cache/jaxgen; without a home, a folder of
    the system's temporary one.
    """
    if own := os.environ.get("JAXGEN_CACHE"):
        return files.to_path(own).absolute()
    # The XDG rules: a relative path there is to be ignored.
    if (xdg := os.environ.get("XDG_CACHE_HOME")) and Path(xdg).is_absolute():
        return Path(xdg) / "jaxgen"
    try:
        return Path.home() / ".cache" / "jaxgen"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"jaxgen-{os.getuid()}"


def is_run(path: Path) -> bool:
    """Return whether a path is the folder of a run that has begun."""
    if files.in_bucket(path):
        return (path / "config.yaml").is_file()
    return os.path.isfile(path / "config.yaml")  # unlike Path.is_file, never raises


def begun(word: str) -> Path | None:
    """Return the folder of the run that a word means, by its path or its name in runs/.

    None where it is no run that has begun. What lies here and a config come before such a name.
    """
    path = _path(word, "config, run or text")
    if is_run(path):
        return path
    name = path.name == word and not path.exists() and _named(word) is None
    return RUNS / word if name and is_run(RUNS / word) else None


def is_text(word: str) -> bool:
    """Return whether a word means text to train on: files, a folder of them, or a glob.

    Raises ConfigError for the folder of a model, with how to go on with it.
    """
    path = _path(word, "config, run or text").expanduser()
    if path.is_file() and path.suffix != sources.GGUF:
        return path.suffix.lower() not in SUFFIXES
    if not path.exists():
        return bool(GLOB.search(word))
    if _named(word) is not None or {"checkpoints", "LOCK"} & {p.name for p in _children(path)}:
        return False
    if (path / "config.json").is_file() or path.suffix == sources.GGUF:
        raise ConfigError(
            f"{word} is a model, not text; to go on with it: `jaxgen train my.txt init_from={word}`"
        )
    return True


def text_home(word: str) -> Path:
    """Return the file or folder that a text's run is named after."""
    path = files.to_path(word).expanduser().absolute()
    while (
        not path.exists() and path != path.parent
    ):  # a glob is named after the folder that it looks in
        path = path.parent
    return path


def config(word: str) -> Path:
    """Return the config file that a word means: a path, or a name in configs/ here or ours.

    Raises ConfigError with the nearest name if there is none.
    """
    path = _path(word, "config")
    if path.is_file() or (path.exists() and not path.is_dir()):
        return path
    if (named := _named(word)) is not None:
        return named
    if path.is_dir():
        raise ConfigError(
            f"{word} is a folder without config.yaml, so it is no run to go on with; "
            f"give a config file (.yaml), as in `jaxgen train my.yaml --out {word}`"
        )
    here = _stems(CONFIGS) | _stems(Path()) | _stems(files.config_folder())
    texts = {path.name for path in _children(Path()) if path.is_file()}
    runs = {name for name in _names(RUNS) if is_run(RUNS / name)}
    tuned = "`jaxgen train my.txt init_from={}`"
    hint = sources.advice(word, tuned)
    if sources.hub_id(word) and not hint:
        hint = f"; to train a model of the Hugging Face hub further: {tuned.format(word)}"
    hint = hint or nearest(path.stem, here) or nearest(word, texts)
    hint = hint or nearest(path.name, runs, prefix=f"{RUNS}/")
    if not hint and path.suffix and path.suffix not in SUFFIXES:
        hint = "; correct the path of the text"
    hint = hint or f"; there are {', '.join(sorted(here | {f'{RUNS}/{name}' for name in runs}))}"
    raise ConfigError(f"{word}: no such config, run or text{hint}")


def _named(word: str) -> Path | None:
    """Return the config of a name, in configs/ here or ours."""
    for folder in (CONFIGS, files.config_folder()):
        for suffix in ("", *SUFFIXES):
            path = folder / f"{word}{suffix}"
            if Path(word).name == word and path.suffix in SUFFIXES and path.is_file():
                return path
    return None


def run_folder(word: str) -> Path:
    """Return the folder of the run that a word means: a path, or a name in runs/.

    Raises ConfigError with the nearest name if there is none.
    """
    if (folder := folder_here(word)) is not None:
        return folder
    raise _unknown(word, "run", "")


def model(word: str, step: str | None) -> tuple[Path, Step]:
    """Return where the model that a word means is, and which checkpoint of it.

    word: as for `run_folder`, the folder of a checkpoint, or any source of a model
    (`sources.local_path`), which is fetched if it is one of the hub; step: what --step says.
    """
    path = sources.find(folder_here(word) or word)
    if path is None or (path.exists() and not path.is_dir() and path.suffix != sources.GGUF):
        raise _unknown(word, "run or model", sources.REMEDIES)
    (folder, own), number = run_and_step(path), checkpoint(step)
    if own is not None and number not in (None, own):
        raise ConfigError(f"{word} is step {own}, but --step {step} is asked for; remove one")
    return folder, own if own is not None else number


def adapted(
    word: str, step: str | None, adapter: Sequence[str] = ()
) -> tuple[Path, Step, tuple[Any, ...]]:
    """Return (the folder of a model, which checkpoint, its adapters), as --adapter says.

    word: as for `model`, or the folder of an adapter that names its base.
    """
    from jaxgen.pretrained.adapted import resolved

    folder, number = model(word, step)
    return (base := resolved(folder, [_named_adapter(one) for one in adapter]))[0], number, base[1]


def _named_adapter(word: str) -> str:
    """Return the adapter that a word means, by its path or, of a run, its name in runs/."""
    name, equals, scale = word.partition("=")
    return f"{folder_here(name) or name}{equals}{scale}"


def folder_here(word: str) -> Path | None:
    """Return the folder of this path, or of this name in runs/; None if there is neither."""
    path = _path(word, "run")
    if path.is_dir():
        return path
    return RUNS / word if path.name == word and (RUNS / word).is_dir() else None


def _unknown(word: str, role: str, remedies: str) -> ConfigError:
    if files.to_path(word).exists():
        return ConfigError(f"{word} is a file; give the folder of a run, as in runs/quickstart")
    names = _names(RUNS) | {str(RUNS / name) for name in _names(RUNS)}
    hint = sources.advice(word, "this command with {}") or nearest(word, names)
    hint = hint or f"; {remedies or '`jaxgen train my.txt` makes one in runs/'}"
    return ConfigError(f"{word}: no such {role}{hint}")


def checkpoint(step: str | None, option: str = "--step") -> Step:
    """Return the checkpoint that an option names; ConfigError if that is none."""
    if step is None or step in ("best", "last"):
        return step
    if re.fullmatch("[0-9]{1,15}", step):
        return int(step)
    raise ConfigError(f"{option} {step} is no checkpoint; give its number, best or last")


def new_run(config_file: Path) -> Path:
    """Return the folder that a config, or a text, is trained in unless another is given."""
    return RUNS / (config_file.name if config_file.is_dir() else config_file.stem)


def _path(word: str, role: str) -> Path:
    if not word or "\0" in word:
        raise ConfigError(f"{word!r} is no {role}; give a path or a name")
    if files.in_bucket(path := files.to_path(word)):
        return path
    try:
        os.lstat(word)
    except OSError as error:
        if error.strerror and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise ConfigError(f"{word[:200]}: {error.strerror}; correct the path") from None
    return path


def _stems(folder: Path) -> set[str]:
    return {name.stem for name in _children(folder) if name.suffix in SUFFIXES}


def _names(folder: Path) -> set[str]:
    return {path.name for path in _children(folder) if path.is_dir()}


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def check_folder(word: str | Path, option: str = "--out") -> None:
    """Raise ConfigError if a folder that is about to be written can't be one.

    Raises BusyError where nothing can be written into it, or into what it is to lie in.
    """
    files.refuse_bucket(word, f"give {option} of this machine")
    there = [path for path in (Path(word), *Path(word).parents) if path.exists()]
    for path in there:
        if not path.is_dir():
            raise ConfigError(f"{option} {word}: {path} is a file; name a folder")
    draft = there[0] / f"{files.TEMPORARY}{uuid.uuid4().hex[:12]}"
    with files.refusals(f"{option} {word}"):
        draft.touch()
        draft.unlink()

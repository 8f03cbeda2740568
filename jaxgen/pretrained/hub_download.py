"""Models of the Hugging Face hub, fetched into its cache by its own library (`huggingface_hub`).

HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN mean what they do there. Only weights in
safetensors or GGUF, and the small files that are read here, are fetched: no pickle, no code.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import files, terminal
from jaxgen.errors import BusyError, CheckpointError, ConfigError, MissingPackageError, UserError

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
GGUF, PICKLES = ".gguf", (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Written out, for the modules that read them import JAX; a test holds the two together.
SMALL = frozenset(
    """
    config.json generation_config.json model.safetensors.index.json
    tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
    tokenizer.model spiece.model spm.model sentencepiece.bpe.model tiktoken.model
    vocab.json merges.txt vocab.txt source.spm target.spm
    chat_template.jinja chat_template.json
    modules.json config_sentence_transformers.json sentence_bert_config.json
    sentence_roberta_config.json sentence_distilbert_config.json sentence_camembert_config.json
    sentence_albert_config.json sentence_xlm-roberta_config.json sentence_xlnet_config.json
    """.split()
)
# Further chat templates, and the modules of sentence-transformers.
BELOW = re.compile(
    r"additional_chat_templates/[\w.-]+\.jinja|\d+_\w+/(config.json|model.safetensors)"
)
SHOWN = 8
_HUB_ID = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w][\w./-]*))?(?::([\w][\w./-]*))?", re.ASCII
)


class HubId(NamedTuple):
    """A model of the Hugging Face hub; file: which of its GGUF files, by its name or a part."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, word: str) -> HubId | None:
        """Return the id that a word has the form of."""
        match = _HUB_ID.fullmatch(word)
        return None if match is None else cls(*match.groups())

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repo}{revision}{'' if self.file is None else f':{self.file}'}"


def fetch(named: HubId) -> Path:
    """Return the folder of a model of the hub in its cache, or its .gguf file, fetched if need be.

    What is there already is not fetched again. Where the hub can't be reached, what the cache has
    of the model is taken, with a warning.

    Raises MissingPackageError without huggingface_hub; ConfigError for a model, revision or file
    that the hub does not have; BusyError if the hub, the network or the disk refuses;
    CheckpointError for a model of pickles alone, or a file that is not the published one.
    """
    hub = _library(named)
    with _quiet(hub), _explained(named, hub):
        try:
            about = hub.HfApi().model_info(
                named.repo,
                revision=named.revision,
                files_metadata=True,
                timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
            )
        except hub.errors.RevisionNotFoundError:
            raise
        except Exception as error:  # of whichever HTTP library
            return _cached(named, hub, error)
    with _quiet(hub), _explained(named, hub, fetching=True):
        return _fetched(named, hub, about)


def _library(named: HubId) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise MissingPackageError(
            f"{named}: no such path here, and to fetch a model of the Hugging Face hub "
            f"huggingface_hub is missing: pip install 'jaxgen[hub]'"
        ) from None
    return huggingface_hub


def _fetched(named: HubId, hub: Any, about: Any) -> Path:
    """Return where a model's files are; about: what the hub says of them."""
    rows = {row.rfilename: row for row in about.siblings}
    cached = partial(hub.try_to_load_from_cache, named.repo)
    get = partial(hub.hf_hub_download, named.repo, revision=about.sha)
    file = _gguf(named, rows)
    first = file or CONFIG
    if first not in rows:
        raise ConfigError(f"{named} has no {CONFIG}, so it is no model of transformers")
    wanted: list[Any] = []

    def absent(names: Collection[str]) -> list[str]:
        new = [n for n in names if not isinstance(cached(n, revision=about.sha), str)]
        wanted.extend(rows[name] for name in new)
        return new

    began = time.monotonic()
    with _progress(named, hub, wanted):
        if file is None:
            files.each(get, absent([n for n in rows if n in SMALL or BELOW.fullmatch(n)]))
        large = [file] if file else _weights(named, Path(get(CONFIG)).parent, rows)
        for name in absent(large):  # in this thread, so that Ctrl-C ends it at once
            _check(named, Path(get(name)), rows[name].lfs)
    path = Path(get(first))
    if cached(first, revision=named.revision or hub.constants.DEFAULT_REVISION) != str(path):
        # At last the name of the revision, by which the cache finds it without a network.
        hub.hf_hub_download(named.repo, first, revision=named.revision)
    if wanted:
        size = files.human(sum(row.size or 0 for row in wanted))
        terminal.say(f"fetched {named}: {size}, {time.monotonic() - began:.1f} s")
    return path if file else path.parent


def _cached(named: HubId, hub: Any, error: Exception) -> Path:
    """Return what the cache has of a model that the hub said nothing of, for this error."""
    try:
        home = Path(
            hub.snapshot_download(
                named.repo, revision=named.revision, local_files_only=True, allow_patterns=[CONFIG]
            )
        )
    except hub.errors.LocalEntryNotFoundError:
        raise error from None
    names = [str(path.relative_to(home)) for path in home.rglob("*")]
    file = _gguf(named, names)
    if file is None:
        _weights(named, home, names)
    if not isinstance(error, hub.errors.OfflineModeIsEnabled):
        warnings.warn(f"{named}: taken from the cache, for {_reason(error)}", stacklevel=5)
    return home / (file or "")


def _gguf(named: HubId, names: Collection[str]) -> str | None:
    """Return which GGUF file of a model is meant; None: its safetensors.

    Raises ConfigError if there is none such, or several.
    """
    ggufs = sorted(name for name in names if name.endswith(GGUF))
    if named.file is None:
        if CONFIG in names or not ggufs:
            return None
        found = ggufs
    else:
        part = named.file.lower()
        found = [name for name in ggufs if name == named.file]
        found = found or [name for name in ggufs if part in name.lower()]
    if len(found) == 1:
        return found[0]
    more = f", and {len(ggufs) - SHOWN} more" if len(ggufs) > SHOWN else ""
    choice = ", ".join(f"{named.repo}:{name}" for name in (found or ggufs)[:SHOWN]) + more
    if not ggufs:
        raise ConfigError(f"{named}: {named.repo} has no {GGUF} file; leave out :{named.file}")
    if not found:
        raise ConfigError(f"{named}: no {GGUF} file is called so; there are {choice}")
    raise ConfigError(f"{named}: {len(found)} files are meant; give one of them: {choice}")


def _weights(named: HubId, home: Path, names: Collection[str]) -> list[str]:
    """Return the files of weights that a model's folder lacks or has; names: all that there are."""
    if INDEX in names:
        index = files.read_json(home / INDEX, "index of weights", 100 << 20)
        shards = index.get("weight_map")
        found = {str(name) for name in (shards.values() if isinstance(shards, dict) else ())}
    else:
        found = {WEIGHTS}
    lost = sorted(found - set(names))
    if not lost:
        return sorted(found)
    there = [name for name in names if name.endswith(PICKLES) and "/" not in name]
    if INDEX not in names and there:
        raise CheckpointError(
            f"{named} has its weights in {there[0]} alone, a pickle, which is not read, for it "
            f"could run any program; take a model, or a revision (@refs/pr/N), with safetensors"
        )
    raise CheckpointError(f"{named} has no {lost[0]}; it is not whole, or no model of text")


def _check(named: HubId, path: Path, lfs: Any) -> None:
    """Raise CheckpointError unless a file that has just come is the published one; drop it then."""
    if lfs is not None and files.digest(path) != lfs.sha256:
        path.resolve().unlink()
        path.unlink()
        raise CheckpointError(
            f"{named}: {path.name} came damaged (its sha256 is not {lfs.sha256[:12]}...) and is "
            f"dropped; the same command fetches it again"
        )


@contextmanager
def _progress(named: HubId, hub: Any, wanted: list[Any]) -> Iterator[None]:
    """Say how much of the wanted files is in the cache, until the block ends."""
    blobs = Path(hub.constants.HF_HUB_CACHE) / f"models--{named.repo.replace('/', '--')}" / "blobs"

    def held() -> int:
        try:  # files on their way have a name there as well
            return sum(path.stat().st_blocks * 512 for path in blobs.iterdir())
        except OSError:
            return 0

    before = held()

    def describe() -> str:
        done, total = held() - before, sum(row.size or 0 for row in wanted)
        return f"{files.human(min(done, total))} of {files.human(total)}"

    with terminal.waiting(f"fetching {named}", describe):
        yield


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Leave it to us to say what goes on."""
    log, utils = logging.getLogger("huggingface_hub"), hub.utils
    level, silent = log.level, utils.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    if not silent:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if not silent:
            utils.enable_progress_bars()


@contextmanager
def _explained(named: HubId, hub: Any, *, fetching: bool = False) -> Iterator[None]:
    """Turn what the library raises into one line, with the exit code of its kind.

    fetching: the model is there, and its files are on their way.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _explain(named, hub, error, fetching) from error


def _explain(named: HubId, hub: Any, error: Any, fetching: bool) -> UserError:
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    page, log_in = f"{endpoint}/{named.repo}", "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return BusyError(f"{named} is gated: ask for access at {page}, then {log_in}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"{named}: no such path here, and no such model at {endpoint}, or it is private; "
            f"correct the name, or {log_in}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(
            f"{named}: {named.repo} has no branch, tag or commit {named.revision}; those there "
            f"are: {page}/refs"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return BusyError(
            f"{named} is not in {hub.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch "
            f"it; unset that, or set HF_HOME to the cache that has it"
        )
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"{named} is no name of the hub: {error!s:.200}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        more = log_in if status in (401, 403) else "try again later: what has come is kept"
        return BusyError(f"{named}: {_reason(error)}; {more}")
    if isinstance(error, OSError) and error.errno:
        with files.refusals(error.filename or hub.constants.HF_HUB_CACHE):
            raise error
    if fetching:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return BusyError(
            f"{named}: the download broke off ({text}); try again: whole files are kept"
        )
    return BusyError(
        f"{named}: no such path here, and {_reason(error)}; correct the path, or check the network"
    )


def _reason(error: Exception) -> str:
    """Return what kept the hub from answering, in a few words."""
    from huggingface_hub import constants

    response = getattr(error, "response", None)
    if response is not None:
        return f"{constants.ENDPOINT} answers with HTTP {response.status_code}"
    text = " ".join(str(error).split())[:120]
    return f"{constants.ENDPOINT} can't be reached ({type(error).__name__}: {text})"

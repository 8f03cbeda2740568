"""`jaxgen train` as a function, for notebooks and scripts."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import arguments
from jaxgen.cli import paths
from jaxgen.cli.train import task_of
from jaxgen.errors import PREEMPTED, ConfigError, nearest
from jaxgen.store.steps import Step


@arguments.checked(minutes=arguments.above(0))
def train(
    what: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, Any],
    *words: str,
    out: str | os.PathLike | None = None,
    minutes: float | None = None,
    force: bool = False,
    step: Step = None,
    **sections: Any,
) -> Path:
    """Train on text, as a config says, or go on with a run; return the run's folder.

    `jaxgen.open` takes that folder. An interrupt saves and returns; the same call goes on from
    there. A notebook shows a line that is renewed in its place.

    Args:
      what: text files or folders, a .yaml file or its name in configs/, a run folder, several of
        these as on the command line, or a config as a mapping, which needs `out`.
      words: "section.key=value" overrides.
      out: the run folder; by default runs/NAME.
      minutes: for text without a config, about how long to train.
      force: remove the run in the folder and begin anew; with step, its later steps alone.
      step: the checkpoint to go on from: its number, "best" or "last".
      sections: overrides by section, such as model={"layers": 6}, or init_from="models/gpt2".

    Raises:
      ConfigError: for a wrong key, and what else `jaxgen train` refuses.

    Example:
      >>> _ = open("my.txt", "w").write("a text to learn from, line by line. " * 99)
      >>> model = {"layers": 1, "d_model": 8, "heads": 2, "context": 64}
      >>> sections = {"model": model, "tokenizer": {"kind": "bytes"}, "train": {"steps": 1}}
      >>> run = jaxgen.train("my.txt", **sections)  # doctest: +ELLIPSIS
      chosen for ...
      >>> jaxgen.load(run)[0].layers
      1
    """
    _check_names(sections)
    overrides = (*words, *_assignments(sections))
    if isinstance(what, Mapping):
        if out is None:
            raise ConfigError("train: out=None, but a config without a file needs it; give out=")
        from jaxgen import files, run, settings

        built = run.build_settings(settings.override(what, overrides))
        folder, cache = files.to_path(out), paths.cache()
        work = partial(run.train, built, folder, cache=cache, force=force, step=step)
    else:
        several = [what] if isinstance(what, str | os.PathLike) else what
        task = task_of(
            (*(str(os.fspath(one)) for one in several), *overrides),
            out=None if out is None else os.fspath(out),
            minutes=minutes,
            force=force,
            step=step,
        )
        folder, work = task.folder, partial(task.run, prepare=lambda cache: None)
    try:
        work()
    except SystemExit as error:  # stopped and saved, which has been said
        if error.code != PREEMPTED:
            raise
    return folder


def _check_names(sections: Mapping[str, Any]) -> None:
    from jaxgen import run

    known = [field.name for field in dataclasses.fields(run.Settings)]
    for name in sections.keys() - set(known):
        hint = nearest(name, [*inspect.signature(train).parameters, *known])
        hint = hint or f"; the sections are {', '.join(known)}"
        raise ConfigError(f"train: {name}= is no argument, nor a section of a config{hint}")


def _assignments(sections: Mapping[str, Any]) -> Iterator[str]:
    for section, values in sections.items():
        if isinstance(values, Mapping):
            for key, value in values.items():
                yield f"{section}.{key}={json.dumps(value)}"
        else:
            yield f"{section}={json.dumps(values)}"

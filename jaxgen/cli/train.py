"""`jaxgen train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxgen.cli import arguments, exits, launch, paths, start
from jaxgen.cli.arguments import Out, Overrides
from jaxgen.errors import ConfigError
from jaxgen.run.signals import StopRequest


def train(
    config: Annotated[
        str | None, Parameter(help="a .yaml file, its name in configs/, or a run folder")
    ] = None,
    /,
    *overrides: Overrides,
    out: Out = None,
    print_config: Annotated[bool, Parameter(help="print the resolved config and stop")] = False,
    keys: Annotated[bool, Parameter(help="list every key of a config and stop")] = False,
    profile: Annotated[
        bool, Parameter(help="trace steps 3 to 7 into profile/, and say what took their time")
    ] = False,
    among: launch.Flags | None = None,
) -> None:
    """Train a model as a config says, or go on with a run.

    Everything is written to the run folder, runs/NAME unless --out names another:
    config.yaml, tokenizer, checkpoints/, metrics.jsonl, events/ for TensorBoard,
    samples/, log.txt and loss.png. Ctrl-C saves and stops; the same command goes
    on from there. A folder that holds a run of another config is refused.

    For example:
        jaxgen train shakespeare_char
        jaxgen train my.yaml --out runs/wide model.d_model=512 train.steps=2000
        jaxgen train runs/wide                 go on with a run
        jaxgen train my.yaml --print-config    what would be trained, in full
        jaxgen train my.yaml --out runs/look train.steps=7 --profile
        jaxgen train --keys                    every key and its meaning

    On a TPU pod, or under Slurm's srun, the same command in every process trains
    one model; elsewhere each is told its place, and all write one run folder:
        jaxgen train my.yaml --coordinator host0:8476 --processes 2 --process 0
    """
    if keys:
        _print_keys()
        return
    if config is None:
        raise ConfigError("CONFIG is missing; `jaxgen train --help` shows examples")
    if "=" in config and not Path(config).exists():
        raise ConfigError(f"CONFIG comes first: `jaxgen train CONFIG.yaml {config}`")
    arguments.check_overrides(overrides)
    if paths.is_run(Path(config)):
        _go_on(Path(config), overrides, out, print_config, profile, among)
    else:
        _begin(paths.config(config), overrides, out, print_config, profile, among)


def _begin(
    path: Path,
    overrides: Sequence[str],
    out: str | None,
    print_config: bool,
    profile: bool,
    among: launch.Flags | None,
) -> None:
    from jaxgen import run
    from jaxgen.run.folder import PROFILE
    from jaxgen.settings import dump

    settings = run.read_settings(path, overrides)
    if print_config:
        print(dump(settings), end="")
        return
    folder, cache = Path(out) if out else paths.new_run(path), paths.cache()
    with exits.in_folder(folder), StopRequest() as stop:
        start.prepare_jax(cache)
        with launch.group(among) as group, exits.in_folder(folder):
            trace = folder / PROFILE if profile else None
            run.train(settings, folder, cache=cache, stop=stop, group=group, trace=trace)


def _go_on(
    folder: Path,
    overrides: Sequence[str],
    out: str | None,
    print_config: bool,
    profile: bool,
    among: launch.Flags | None,
) -> None:
    if out is not None and Path(out) != folder:
        raise ConfigError(
            f"{folder} is a run, which goes on in its own folder; for a new run in {out} give its "
            f"config: `jaxgen train {folder / 'config.yaml'} --out {out}`"
        )
    from jaxgen import run
    from jaxgen.run.folder import PROFILE
    from jaxgen.settings import dump

    if print_config:
        print(dump(run.read_settings(folder / "config.yaml", overrides)), end="")
        return
    cache = paths.cache()
    with exits.in_folder(folder), StopRequest() as stop:
        start.prepare_jax(cache)
        with launch.group(among) as group, exits.in_folder(folder):
            trace = folder / PROFILE if profile else None
            run.resume(folder, overrides, cache=cache, stop=stop, group=group, trace=trace)


def _print_keys() -> None:
    from jaxgen import run
    from jaxgen.settings import fields_help

    section = None
    for key, kind, default, text in fields_help(run.Settings):
        if section not in (None, key.partition(".")[0]):
            print()
        section = key.partition(".")[0]
        print(f"{key}={_spell(default)}  ({kind})\n    {text}".rstrip())


def _spell(value: object) -> str:
    """Return a default as a config spells it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return str(value)

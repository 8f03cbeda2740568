"""`jaxgen train`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import arguments, exits, launch, paths, start
from jaxgen.cli import restarts as restarting
from jaxgen.cli.arguments import REAL, Out
from jaxgen.errors import ConfigError
from jaxgen.run.signals import StopRequest

if TYPE_CHECKING:
    from jaxgen.run import Settings

TUNED = "finetune_gpt2"  # the config of text that goes on with a model
MODELS = ("init_from", "distill.teacher")  # keys whose value may be the name of a run


Config = Annotated[
    str | None,
    Parameter(help="text files or folders; a .yaml, or its name in configs/; a run, or its name"),
]
More = Annotated[
    str,
    Parameter(
        help="more text, which replaces a config's; SECTION.KEY=VALUE: a key of the config",
        name="KEY=VALUE",
    ),
]
Minutes = Annotated[
    float | None,
    REAL,
    Parameter(help="text without a config: about how long to train; by default 10"),
]
From = Annotated[
    str | None,
    Parameter(name="--from", help="go on from this checkpoint of the run: its number, or best"),
]
Force = Annotated[
    bool,
    Parameter(help="remove the run in the folder, to begin anew; with --from, its later steps"),
]
Printed = Annotated[bool, Parameter(help="print the resolved config and stop")]
Keys = Annotated[bool, Parameter(help="list every key of a config and stop")]
Profile = Annotated[
    bool, Parameter(help="trace steps 3 to 7 into profile/, and say what took their time")
]
Restarts = Annotated[
    int,
    arguments.at_least(0),
    Parameter(help="start again so often after a crash, kill -9 or a lost process; 0: never"),
]


def train(
    config: Config = None,
    /,
    *overrides: More,
    out: Out = None,
    minutes: Minutes = None,
    from_step: From = None,
    force: Force = False,
    print_config: Printed = False,
    keys: Keys = False,
    profile: Profile = False,
    restarts: Restarts = 0,
    among: launch.Flags | None = None,
) -> int | None:
    """Train a model on text, as a config says, or go on with a run.

    Everything is written to the run folder, runs/NAME unless --out names another:
    config.yaml, tokenizer, checkpoints/, metrics.jsonl, events/ for TensorBoard,
    samples/, log.txt and loss.png. Ctrl-C saves and stops; the same command goes
    on from there. A folder that holds a run of another config is refused.

    For example:
        jaxgen train my.txt                    text of any ending, or a folder
        jaxgen train shakespeare_char my.txt   a config, on other text
        jaxgen train my.yaml --out runs/wide train.steps=2000 model.layers=6
        jaxgen train runs/wide                 go on with a run
        jaxgen train runs/wide --from 200 --force
        jaxgen train my.yaml --print-config    what would be trained, in full
        jaxgen train my.yaml train.steps=7 --profile
        jaxgen train my.yaml --restarts 20     goes on by itself after a crash

    Text without a config gets sizes by rules, which --print-config shows applied:
    the more text, the more pieces (bytes below 20 kB, then 512 to 32768); of some
    Llamas of 2 to 24 layers the largest with at most a weight a byte of text that
    sees two tokens a weight in the time and fits the memory; no text is seen more
    than 20 times. init_from=FOLDER trains on that model instead.

    On a TPU pod, or under srun, mpirun, torchrun, Ray Train, SkyPilot or a JobSet
    of Kubernetes, the same command in every process trains one model; elsewhere
    each is told its place. All write one run folder. JAXGEN_TOKEN, set alike in all
    of them, keeps strangers from joining; JAX's own connections are not secret.
        jaxgen train my.yaml --coordinator host0:8476 --processes 2 --process 0
    """
    if keys:
        _print_keys()
        return None
    words = overrides if config is None else (config, *overrides)
    step = paths.checkpoint(from_step, "--from")
    task = task_of(words, out=out, minutes=minutes, force=force, step=step)
    if print_config:
        from jaxgen.settings import dump

        print(dump(task.settings()), end="")
        return None
    if restarts:
        again = partial(task.again, among)
        return restarting.supervise(restarting.this_command(), again, task.folder, restarts)
    return task.run(among=among, profile=profile)


@dataclass(frozen=True)
class Task:
    """What the words of a training come to.

    goes_on: whether `folder` is a run that goes on, as overrides say; else it begins with `config`,
    or with sizes chosen for `texts`.
    """

    folder: Path
    overrides: tuple[str, ...]
    goes_on: bool = False
    config: Path | None = None
    texts: tuple[str, ...] = ()
    minutes: float | None = None
    force: bool = False
    step: Any = None

    def settings(self, *, silent: bool = True) -> Settings:
        """Return the settings to train with; silent: don't say which sizes were chosen."""
        from jaxgen import run

        if self.goes_on:
            return run.read_settings(self.folder / "config.yaml", self.overrides)
        if self.config is not None:
            return run.read_settings(self.config, self.overrides)
        more = {} if self.minutes is None else {"minutes": self.minutes}
        settings, choice = run.text_settings(self.texts, self.overrides, **more)
        if not silent:
            print(choice, flush=True)
        return settings

    def again(self, among: launch.Flags | None) -> list[str]:
        """Return the command line that goes on with this training, which this one has begun."""
        if not paths.is_run(self.folder):
            return restarting.this_command()
        overrides = self.overrides if self.goes_on else ()
        return [*restarting.JAXGEN, "train", str(self.folder), *overrides, *launch.words(among)]

    def run(
        self,
        *,
        among: launch.Flags | None = None,
        profile: bool = False,
        prepare: Callable[[Path], None] | None = None,
    ) -> None:
        """Train; prepare: sets up JAX, given the cache, None: as the command does."""
        from jaxgen import run
        from jaxgen.run.folder import PROFILE, changed_settings

        folder, cache = self.folder, paths.cache()
        # What a config or an override says wrong is said before JAX is started.
        if self.goes_on:
            changed_settings(folder, self.overrides)
        settings = None if self.config is None else self.settings()
        where = f"training {'goes on ' if self.goes_on else ''}in {folder}"
        if not self.texts:
            terminal.say(where)
        same = restarting.SAME_SIGNAL if os.environ.get(restarting.SUPERVISED) else 0.0
        with exits.in_folder(folder), StopRequest(same=same) as stop:
            (prepare or start.prepare_jax)(cache)
            with launch.group(among) as group, exits.in_folder(folder):
                more: dict[str, Any] = {"cache": cache, "stop": stop, "group": group}
                more |= {"trace": folder / PROFILE if profile else None}
                more |= {"force": self.force, "step": self.step}
                if self.goes_on:
                    run.resume(folder, self.overrides, **more)
                    return
                if settings is None:  # whose sizes depend on the devices
                    settings = self.settings(silent=not group.first)
                    terminal.say(where)
                self._begin(settings, **more)

    def _begin(self, settings: Settings, **more: Any) -> None:
        """Train from the first step; a chosen tokenizer that the text lacks gives way."""
        from jaxgen import run
        from jaxgen.run.sizes import with_pieces
        from jaxgen.tokens.pieces import VocabularySizeError

        try:
            run.train(settings, self.folder, **more)
        except VocabularySizeError as error:
            if not self.texts or any(word.startswith("tokenizer") for word in self.overrides):
                raise
            settings = with_pieces(settings, error.works)
            print(f"the text has {settings.tokenizer.vocab_size} pieces, which are taken")
            run.train(settings, self.folder, **more)


def task_of(
    words: Sequence[str],
    *,
    out: str | None = None,
    minutes: float | None = None,
    force: bool = False,
    step: Any = None,
) -> Task:
    """Return what words mean: a config, a run or texts, then texts and overrides in any order.

    Raises ConfigError for words that mean nothing, or contradict the options.
    """
    names = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = tuple(_with_folder(word) for word in words if word not in names)
    if not names:
        if overrides:
            raise ConfigError(f"CONFIG comes first: `jaxgen train CONFIG.yaml {overrides[0]}`")
        raise ConfigError(
            "CONFIG is missing: give text to train on, a .yaml file or a run; `jaxgen train "
            "--help` shows examples"
        )
    first, *texts = names
    home = paths.begun(first)
    begins_with_text = home is None and paths.is_text(first)
    config = None if home or begins_with_text else paths.config(first)
    for word in texts:
        if not paths.is_text(word):
            raise ConfigError(
                f"unexpected word {word!r}: after the config come files of text, which must be "
                f"there, and overrides, written SECTION.KEY=VALUE as in train.steps=100"
            )
    if minutes is not None:
        _check_minutes(minutes, None if begins_with_text else first)
    more: dict[str, Any] = {"force": force, "step": step}
    if home is not None:
        folder = home
        if out is not None and files.to_path(out) != folder:
            raise ConfigError(
                f"{folder} is a run, which goes on in its own folder; for a new run in {out} give "
                f"its config: `jaxgen train {folder / 'config.yaml'} --out {out}`"
            )
        return Task(folder, (*_files(texts), *overrides), goes_on=True, **more)
    if config is not None:
        folder = files.to_path(out) if out else paths.new_run(config)
        only = (*_files(texts), "data.valid_files=[]", "data.test_files=[]") if texts else ()
        return Task(folder, (*only, *overrides), config=config, **more)
    folder = files.to_path(out) if out else paths.new_run(paths.text_home(first))
    if paths.is_run(folder) and not (force and step is None):
        if minutes is not None:
            terminal.say(
                f"{folder} has begun and goes on with its own sizes; --minutes={minutes:g} chooses "
                f"those of a new run (another --out, or --force)"
            )
        return Task(folder, (*_files(names), *overrides), goes_on=True, **more)
    if any(word.startswith("init_from=") for word in overrides):
        words = (*_files(names), *_context_within(overrides), *overrides)
        return Task(folder, words, config=paths.config(TUNED), **more)
    return Task(folder, overrides, texts=tuple(names), minutes=minutes, **more)


def _check_minutes(minutes: float, config: str | None) -> None:
    if minutes <= 0:
        raise ConfigError(f"--minutes={minutes:g} must be more than 0")
    if config is not None:
        raise ConfigError(
            f"--minutes={minutes:g} chooses sizes for text without a config; for {config} set "
            f"train.steps"
        )


def _with_folder(word: str) -> str:
    """Return an override whose value is the name of a run in runs/ with its path."""
    key, _, name = word.partition("=")
    return f"{key}={paths.folder_here(name) or name}" if key in MODELS else word


def _files(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the override that makes texts the files of a config."""
    return (f"data.files={json.dumps(list(texts))}",) if texts else ()


def _context_within(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the override that keeps the context of TUNED within that of init_from."""
    from jaxgen import settings_yaml
    from jaxgen.pretrained import sources
    from jaxgen.run import initial

    word = next(word for word in overrides if word.startswith("init_from=")).partition("=")[2]
    folder = sources.find(word) or word
    most = settings_yaml.read_yaml(paths.config(TUNED))["model"]["context"]
    return (f"model.context={initial.context_within(files.to_path(folder), most)}",)


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
